"""The closed-form modulator against autograd and finite differences."""

import pytest
import torch

from metakm.ops.modulator_mlp import two_layer_mlp

TASKS, PIXELS, OUT, IN = 2, 4, 3, 2


def inputs():
    generator = torch.Generator().manual_seed(0)
    shapes = ((PIXELS, OUT * IN), (TASKS, PIXELS, PIXELS), (TASKS, PIXELS, PIXELS))
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def plain(columns, first, second):
    rows = second @ torch.tanh(first @ columns)  # [T, k, O*C]
    return rows.view(TASKS, PIXELS, OUT, IN).transpose(1, 2)


def ours(columns, first, second):
    return two_layer_mlp(columns, first, second, OUT)


def test_forward_equals_the_formula_and_has_its_channels_innermost():
    output = ours(*inputs())
    torch.testing.assert_close(output, plain(*inputs()))
    assert output.is_contiguous()


def test_first_and_second_derivatives_by_finite_differences():
    assert torch.autograd.gradcheck(ours, inputs())
    assert torch.autograd.gradgradcheck(ours, inputs())


@pytest.mark.parametrize("which", [(0,), (1,), (2,), (1, 2), (0, 1, 2)])
def test_second_derivatives_equal_autograd_for_any_part_of_the_gradient(which):
    def second(function):
        given = inputs()
        firsts = torch.autograd.grad((function(*given) ** 3).sum(), given, create_graph=True)
        return torch.autograd.grad(sum((firsts[i] ** 2).sum() for i in which), given)

    for actual, expected in zip(second(ours), second(plain), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)

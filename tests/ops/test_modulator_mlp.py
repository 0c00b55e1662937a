"""The closed-form modulator against autograd and finite differences."""

import pytest
import torch

from metakm.ops.modulator_mlp import tanh, tanh_, two_layer_mlp

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


def test_derivatives_of_a_result_in_columns_are_those_of_one_with_channels_innermost():
    def in_columns(*given):
        return two_layer_mlp(*given, None)

    assert torch.equal(in_columns(*inputs()).view(TASKS, PIXELS, OUT, IN).transpose(1, 2), ours(*inputs()))
    assert torch.autograd.gradcheck(in_columns, inputs())
    assert torch.autograd.gradgradcheck(in_columns, inputs())


@pytest.mark.parametrize("create_graph", [False, True])
def test_frozen_columns_leave_the_other_gradients_alone(create_graph):
    columns, first, second = inputs()
    expected = torch.autograd.grad(ours(columns, first, second).square().sum(), (first, second))
    frozen = ours(columns.detach(), first, second).square().sum()
    actual = torch.autograd.grad(frozen, (first, second), create_graph=create_graph)
    assert all(map(torch.equal, actual, expected))


@pytest.mark.float32
def test_the_fast_tangent_is_within_2e_7_and_the_same_in_place():
    x = torch.cat([torch.linspace(-12, 12, 100_001), torch.tensor([0.0, 1e-8, -1e-3, 88.0, -88.0, 1e30, -torch.inf])])
    exact = torch.tanh(x.double())
    assert (tanh(x) - exact).abs().max() <= 2e-7
    assert torch.equal(tanh(x), tanh_(x.clone()))
    assert torch.equal(tanh(x.double()), exact)
    given = x[:1000].clone().requires_grad_()
    tanh(given).sum().backward()
    torch.testing.assert_close(given.grad, 1 - torch.tanh(given.detach().double()).square().float(), rtol=0, atol=1e-6)

import pytest
import torch
import torch.nn.functional as F

from metakm.models.normalisation import batch_norm_relu


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 4, 2, 3, generator=generator, requires_grad=True)
    weight = torch.randn(4, generator=generator, requires_grad=True)
    bias = torch.randn(4, generator=generator, requires_grad=True)
    return x, weight, bias


def test_forward_equals_batch_norm_then_relu():
    x, weight, bias = inputs()
    expected = torch.relu(F.batch_norm(x, None, None, weight, bias, True, 0.0, 1e-5))
    torch.testing.assert_close(batch_norm_relu(x, weight, bias, 1e-5), expected)


def test_first_and_second_derivatives_by_finite_differences():
    x, weight, bias = inputs()
    assert (batch_norm_relu(x, weight, bias, 1e-5) > 0).any()
    assert (batch_norm_relu(x, weight, bias, 1e-5) == 0).any()
    assert torch.autograd.gradcheck(lambda *a: batch_norm_relu(*a, 1e-5), (x, weight, bias))
    assert torch.autograd.gradgradcheck(lambda *a: batch_norm_relu(*a, 1e-5), (x, weight, bias))


@pytest.mark.parametrize("which", [(0,), (1,), (2,), (0, 1), (0, 2), (0, 1, 2)])
def test_second_derivatives_equal_pytorch_for_any_part_of_the_gradient(which):
    """Also at gamma = 0, where gx vanishes and P(g) does not."""
    x, weight, bias = inputs()
    with torch.no_grad():
        weight[1] = 0.0
        bias[1] = 0.5

    def second(function):
        loss = (function(x, weight, bias) ** 3).sum()
        firsts = torch.autograd.grad(loss, (x, weight, bias), create_graph=True)
        return torch.autograd.grad(sum((firsts[i] ** 2).sum() for i in which), (x, weight, bias))

    ours = second(lambda *a: batch_norm_relu(*a, 1e-5))
    theirs = second(lambda x, w, b: torch.relu(F.batch_norm(x, None, None, w, b, True, 0.0, 1e-5)))
    for actual, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)

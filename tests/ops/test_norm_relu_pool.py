import pytest
import torch
import torch.nn.functional as F

from metakm.models.batch_statistics import statistics_from
from metakm.models.layers import BatchNorm2d
from metakm.ops.norm_relu_pool import batch_norm_relu

EPS = 1e-5
GAMMA = {"mixed": [-1.3, 0.4, 0.7, -0.2], "positive": [1.3, 0.4, 0.7, 0.2]}  # these take different ways to the maxima
# 2x2 windows leave out an odd last row or column; a plane may also be a single window.
SHAPES = {
    "whole": (False, (2, 3)),
    "pooled": (True, (4, 6)),
    "pooled-odd": (True, (5, 3)),
    "one-window": (True, (2, 2)),
}

LEAKS = {"relu": 0.0, "leaky": 0.1, "no-activation": 1.0}

every_leak = pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS)
every_shape = pytest.mark.parametrize(("pool", "size"), SHAPES.values(), ids=SHAPES)
every_gamma = pytest.mark.parametrize("gamma", GAMMA.values(), ids=GAMMA)


def inputs(size=(2, 3), gamma=GAMMA["mixed"], seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 4, *size, generator=generator, requires_grad=True)
    bias = torch.randn(4, generator=generator, requires_grad=True)
    return x, torch.tensor(gamma, requires_grad=True), bias


def plain(x, weight, bias, leak, pool):
    y = F.leaky_relu(F.batch_norm(x, None, None, weight, bias, True, 0.0, EPS), leak)
    return F.max_pool2d(y, 2) if pool else y


def derivatives(function, arguments, which=(0, 1, 2)):
    """The value, its gradients, and the gradients of those of them that `which` names."""
    y = function(*arguments)
    firsts = torch.autograd.grad((y**3).sum(), arguments, create_graph=True)
    return y, *firsts, *torch.autograd.grad(sum((firsts[i] ** 2).sum() for i in which), arguments)


def assert_equal_to_plain(arguments, pool, which=(0, 1, 2), leak=0.0):
    ours = derivatives(lambda *a: batch_norm_relu(*a, EPS, leak=leak, pool=pool), arguments, which)
    theirs = derivatives(lambda *a: plain(*a, leak, pool), arguments, which)
    for actual, expected in zip(ours, theirs, strict=True):
        scale = max(1.0, float(expected.detach().abs().max()))
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11 * scale)


@every_leak
@every_shape
@every_gamma
def test_first_and_second_derivatives_by_finite_differences(pool, size, gamma, leak):
    arguments = inputs(size, gamma)

    def function(*tensors):
        return batch_norm_relu(*tensors, EPS, leak=leak, pool=pool)

    y = function(*arguments)
    assert (y > 0).any()
    assert ((y < 0) if leak else (y == 0)).any()
    assert torch.autograd.gradcheck(function, arguments)
    assert torch.autograd.gradgradcheck(function, arguments)


@pytest.mark.parametrize("which", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
@every_leak
@every_shape
@every_gamma
def test_second_derivatives_equal_pytorch_for_any_part_of_the_gradient(which, pool, size, gamma, leak):
    """Also at gamma = 0, where gx vanishes and P(S g) does not, and a window's values tie."""
    arguments = inputs(size, gamma)
    with torch.no_grad():
        arguments[1][1] = 0.0
        arguments[2][1] = 0.5
    assert_equal_to_plain(arguments, pool, which, leak)
    assert_equal_to_plain(inputs(size, gamma), pool, which, leak)


@every_gamma
def test_of_equal_values_in_a_window_the_same_one_counts_as_in_pytorch(gamma):
    x, weight, bias = inputs((4, 4), gamma)
    assert_equal_to_plain((x.detach().round().requires_grad_(), weight, bias), pool=True)


@pytest.mark.parametrize("layout", ["channels-first", "channels-last", "expanded"])
@every_gamma
def test_any_memory_layout_gives_the_same_and_pooling_returns_channels_last(layout, gamma):
    x, weight, bias = inputs((5, 4), gamma)
    if layout == "channels-last":
        x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    elif layout == "expanded":
        x = x.detach()[:1].expand(3, -1, -1, -1).requires_grad_()
    assert_equal_to_plain((x, weight, bias), pool=True)
    y = batch_norm_relu(x, weight, bias, EPS, pool=True)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS)
def test_gradients_without_memory_of_their_own(leak):
    """The gradient of a mean is one number, expanded."""
    arguments = inputs()
    ours = torch.autograd.grad(batch_norm_relu(*arguments, EPS, leak=leak)[:2].mean(), arguments)
    theirs = torch.autograd.grad(plain(*arguments, leak, pool=False)[:2].mean(), arguments)
    for actual, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


@every_leak
@every_shape
@every_gamma
def test_bfloat16_images_on_float32_parameters_come_near(pool, size, gamma, leak):
    x, weight, bias = (u.detach().float().requires_grad_() for u in inputs(size, gamma))
    half = x.detach().bfloat16()
    exact = derivatives(lambda *a: plain(*a, leak, pool), (half.float().requires_grad_(), weight, bias))
    actual = derivatives(
        lambda *a: batch_norm_relu(*a, EPS, leak=leak, pool=pool), (half.requires_grad_(), weight, bias)
    )
    dtypes = [torch.bfloat16] * 2 + [torch.float32] * 2
    assert [u.dtype for u in actual] == [*dtypes, *dtypes[1:]]
    for ours, expected in zip(actual, exact, strict=True):
        assert (ours.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("reference", [None, 2])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", ["transductive", "support", "running", "frozen"])
def test_pooling_in_the_layer_equals_pooling_after_it(mode, training, reference):
    x, weight, bias = inputs((5, 4))
    layer = BatchNorm2d(2, mode).train(training)
    layer.running_mean += 0.3
    del layer.weight, layer.bias
    layer.weight, layer.bias = weight.view(2, 2), bias.view(2, 2)  # of two tasks

    def within(function):
        with statistics_from(reference):
            return derivatives(lambda *_: function(), (x, weight, bias))

    expected = within(lambda: F.max_pool2d(torch.relu(layer(x)), 2))
    for pooled in (lambda: layer(x, relu=True, pool=True), lambda: torch.relu(layer(x, pool=True))):
        for actual, wanted in zip(within(pooled), expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-9)
    leaky = within(lambda: layer(x, relu=True, leak=0.2))
    for actual, wanted in zip(leaky, within(lambda: F.leaky_relu(layer(x), 0.2)), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-9)

"""W~ of a frozen kernel, block by block, against the formulas by autograd."""

import pytest
import torch

from metakm.modulation.modulators import KernelModulator
from metakm.ops import frozen_kernel
from metakm.ops.frozen_kernel import modulate_frozen_kernel

OUT, IN = 5, 3
SIZES = ((1, 1), (2, 3))


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    """Two output channels of 2x3 kernels in a block, and one in the last."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(frozen_kernel, "BLOCK", 2 * IN * 6)


def inputs(size, channels_last=False):
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(OUT, IN, *size, generator=generator)
    layers = [torch.randn(*2 * (size[0] * size[1],), generator=generator, requires_grad=True) for _ in range(2)]
    return kernel.contiguous(memory_format=torch.channels_last) if channels_last else kernel, *layers


def plain(kernel, first, second, scale):
    rows = kernel.reshape(OUT * IN, -1)
    if scale is None:
        found = torch.tanh(rows @ first.mT) @ second.mT
    else:
        found = rows + scale * (torch.tanh(rows / scale @ first.mT) @ second.mT - torch.tanh(rows / scale))
    return found.view(kernel.shape)


@pytest.mark.parametrize("scale", [None, torch.tensor(0.7, dtype=torch.float64)])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_value_format_and_gradients_are_those_of_the_formulas(size, scale, channels_last):
    kernel, *layers = inputs(size, channels_last)
    ours, expected = modulate_frozen_kernel(kernel, *layers, scale), plain(kernel, *layers, scale)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    assert ours.stride() == kernel.stride()
    for actual, wanted in zip(
        torch.autograd.grad((ours**3).sum(), layers), torch.autograd.grad((expected**3).sum(), layers), strict=True
    ):
        torch.testing.assert_close(actual, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("scale", [None, torch.tensor(0.7, dtype=torch.float64)])
@pytest.mark.parametrize("size", SIZES)
def test_first_and_second_derivatives_by_finite_differences(size, scale):
    kernel, *layers = inputs(size)

    def modulated(first, second):
        return modulate_frozen_kernel(kernel, first, second, scale)

    assert torch.autograd.gradcheck(modulated, layers)
    assert torch.autograd.gradgradcheck(modulated, layers)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_a_modulator_gives_a_frozen_kernel_what_it_gives_one_in_training(monkeypatch, size, scale):
    kernel, *layers = inputs(size)
    modulator = KernelModulator(size, scale=scale)
    with torch.no_grad():
        for own, layer in zip(modulator.layers, layers, strict=True):
            own.copy_(layer)
    wanted = modulator(kernel.clone().requires_grad_())
    calls = []

    def called(*arguments):
        calls.append(arguments)
        return modulate_frozen_kernel(*arguments)

    monkeypatch.setattr("metakm.modulation.modulators.kernel.modulate_frozen_kernel", called)
    torch.testing.assert_close(modulator(kernel), wanted, rtol=1e-12, atol=1e-12)
    assert len(calls) == 1


@pytest.mark.float32
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_at_the_exact_start_every_bit_is_the_kernels(size, channels_last):
    kernel, *_ = inputs(size, channels_last)
    identity = torch.eye(size[0] * size[1])
    assert torch.equal(modulate_frozen_kernel(kernel, identity, identity, torch.tensor(0.337)), kernel)


@pytest.mark.float32
def test_autocast_does_not_change_it():
    kernel, *layers = inputs((2, 3))

    def gradients():
        modulated = modulate_frozen_kernel(kernel, *layers, None)
        return modulated, *torch.autograd.grad((modulated**3).sum(), layers)

    wanted = gradients()
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))

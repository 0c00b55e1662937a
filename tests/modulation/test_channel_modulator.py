"""`ChannelModulator` against its equation."""

import pytest
import torch
from convnets import CASES, perturb, train

from metakm.modulation import ChannelModulator, KernelModulator, modulate
from metakm.modulation.attachment import modulated_layers


def test_channel_modulator_equals_its_equation_written_out():
    torch.manual_seed(0)
    w, modulator = torch.randn(4, 5, 3, 2), ChannelModulator((3, 2))
    perturb(modulator, 0.5)
    (u1, u2), a = modulator.layers, modulator.taps
    out, zero = modulator(w), torch.zeros(3, 2)
    for n in range(4):
        for c in range(5):
            before, after = (w[n, c - 1] if c else zero), (w[n, c + 1] if c < 4 else zero)
            v = a[0] * before + a[1] * w[n, c] + a[2] * after
            torch.testing.assert_close(out[n, c].flatten(), u2 @ torch.tanh(u1 @ v.flatten()))


def test_channel_modulator_starts_at_the_kernel_modulators_start_and_stays_small():
    torch.manual_seed(0)
    modulator, w = ChannelModulator((3, 3)), 0.05 * torch.randn(8, 8, 3, 3)
    assert sum(p.numel() for p in modulator.parameters()) == 162 + 27
    assert 0 < (modulator(w) - w).abs().max() < 0.01
    with torch.no_grad():
        modulator.taps.copy_(torch.tensor([0.0, 1.0, 0.0])[:, None, None])
    torch.testing.assert_close(modulator(w), KernelModulator.forward(modulator, w))


@pytest.mark.parametrize(("builder", "classifier"), [CASES["mixed"], CASES["cifar_resnet"]])
def test_channel_modulator_trains_taps_where_channels_have_neighbours(builder, classifier):
    torch.manual_seed(0)
    model = builder()
    modulate(model, classifier=classifier, modulator=ChannelModulator)
    train(model, steps=1)
    for layer in modulated_layers(model).values():
        moved = layer.parametrizations.weight[0].taps.grad.abs().sum((1, 2)) > 0
        neighbours = layer.in_channels // layer.groups > 1
        assert moved.tolist() == [neighbours, True, neighbours]

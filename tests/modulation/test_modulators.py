"""Kernel modulation against Eq. 2-4 written out, and the parameter counts that pin its details."""

import copy

import pytest
import torch
from convnets import perturb
from torch import nn

import metakm
from metakm.modulation import KernelModulator, KernelModulators, available_modulators, load_pack, modulate, save_pack


def test_modulator_equals_the_equation_written_out():
    torch.manual_seed(0)
    kernel, modulator = torch.randn(4, 3, 3, 2), KernelModulator((3, 2))
    u1, u2 = modulator.layers
    out = modulator(kernel)
    for n in range(4):
        for c in range(3):
            torch.testing.assert_close(out[n, c].flatten(), u2 @ torch.tanh(u1 @ kernel[n, c].flatten()))


def test_a_task_axis_modulates_each_task_by_its_own_weights():
    torch.manual_seed(0)
    kernel, singles = torch.randn(4, 3, 3, 3), [KernelModulator((3, 3)) for _ in range(2)]
    batched = KernelModulator((3, 3))
    stacked = {f"layers.{j}": torch.stack([m.layers[j] for m in singles]) for j in range(2)}
    out = torch.func.functional_call(batched, stacked, (kernel,))
    assert out.shape == (2, 4, 3, 3, 3)
    for t in range(2):
        torch.testing.assert_close(out[t], singles[t](kernel))


def test_default_start_is_identity_plus_noise_of_a_thousandth():
    torch.manual_seed(0)
    layers = torch.stack([layer.detach() for _ in range(200) for layer in KernelModulator((3, 3)).layers])
    noise = layers - torch.eye(9)
    assert noise.std().item() == pytest.approx(0.001, rel=0.02)
    assert abs(noise.mean().item()) < 2e-5
    small = 0.05 * torch.randn(8, 8, 3, 3)
    assert (KernelModulator((3, 3))(small) - small).abs().max() < 0.01


@pytest.mark.parametrize("init", ["identity", "orthogonal", "diagonal"])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_initialisations_and_depth(init, depth):
    torch.manual_seed(0)
    modulator = KernelModulator((3, 3), depth=depth, init=init)
    assert len(modulator.layers) == depth
    assert sum(p.numel() for p in modulator.parameters()) == depth * (9 if init == "diagonal" else 81)
    for layer in modulator.layers:
        if init == "orthogonal":
            torch.testing.assert_close(layer @ layer.T, torch.eye(9))
        else:
            assert (layer - (1 if init == "diagonal" else torch.eye(9))).abs().max() < 0.006
    if depth == 1:
        a, b = torch.randn(2, 2, 3, 3), torch.randn(2, 2, 3, 3)
        torch.testing.assert_close(modulator(a + b), modulator(a) + modulator(b))


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("tanh", torch.tanh),
        ("sin", torch.sin),
        ("relu", torch.relu),
        ("leaky_relu", lambda x: torch.where(x > 0, x, 0.1 * x)),
    ],
)
def test_activations(activation, function):
    modulator, kernel = KernelModulator((1, 1), activation=activation), torch.randn(5, 5, 1, 1)
    u1, u2 = (layer.item() for layer in modulator.layers)
    torch.testing.assert_close(modulator(kernel), u2 * function(u1 * kernel))


def test_unknown_options_name_the_known_ones():
    with pytest.raises(metakm.UserError, match="did you mean 'tanh'"):
        KernelModulator((3, 3), activation="tan")
    with pytest.raises(metakm.UserError, match="diagonal, identity, orthogonal"):
        KernelModulator((3, 3), init="zeros")
    with pytest.raises(metakm.UserError, match="at least 1"):
        KernelModulator((3, 3), depth=0)
    with pytest.raises(metakm.UserError, match="Conv2d"):
        KernelModulators(nn.Linear(2, 2))


def test_162_parameters_for_a_3x3_layer_and_every_kernel_size():
    assert sum(p.numel() for p in KernelModulator((3, 3)).parameters()) == 162
    assert sum(p.numel() for p in KernelModulator((7, 7)).parameters()) == 2 * 49**2
    assert sum(p.numel() for p in KernelModulator((1, 1)).parameters()) == 2
    assert sum(p.numel() for p in KernelModulator((1, 3)).parameters()) == 2 * 3**2


def test_counts_of_the_papers_cifar_resnet32():
    """Table I: 7.9 K trainable of 470 K; 2.9 K without the modulators."""
    strategy = metakm.make_strategy("km", metakm.CifarResNet(32), ways=10, implicit=True)
    assert strategy.parameter_counts() == (7_944, 469_176)
    modulators = sum(p.numel() for p in strategy.adapted.modulators.parameters())
    assert modulators == 31 * 162 == 5_022


def test_counts_of_the_papers_omniglot_network():
    """Table III: 51 times fewer, counting convolution biases and leaving the norm affine to the outer loop."""
    counts = {
        algo: metakm.make_strategy(algo, metakm.Conv4(1, 64, "stride"), ways=20).parameter_counts()[0]
        for algo in ("maml", "km", "anil")
    }
    assert counts == {"maml": 112_724, "km": 2_204, "anil": 1_300}
    assert int(counts["maml"] / counts["km"]) == 51


@pytest.mark.parametrize("name", available_modulators())
def test_every_registered_modulator_starts_at_the_base_and_travels_in_a_pack(name, tmp_path):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1, groups=2), nn.Flatten(), nn.Linear(144, 2))
    images = torch.randn(2, 3, 8, 8)
    model = modulate(copy.deepcopy(base), classifier="3", modulator=name)
    torch.testing.assert_close(model(images), base(images))
    perturb(model, 0.1)
    assert (model(images) - base(images)).abs().max() > 0.01
    save_pack(model, tmp_path / "task")
    load_pack(base, tmp_path / "task")
    torch.testing.assert_close(base(images), model(images), rtol=0, atol=0)

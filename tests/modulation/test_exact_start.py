"""The exact start: a trained network computes what it did before, whatever the size of its kernels."""

import copy

import pytest
import torch
import torchvision
from convnets import CASES, Mixed, images, resnet18
from small import assert_close, gradients, random_episodes, small_strategy
from torch import nn

import metakm
from metakm.learning.inner_loop import meta_loss
from metakm.modulation import ChannelModulator, KernelModulator, load_pack, modulate, save_pack
from metakm.modulation.modulators import kernel_scale

NETWORKS = ("resnet18", "mobilenet_v3_small", "efficientnet_b0", "shufflenet_v2_x0_5", "mnasnet0_5")


@pytest.mark.float32
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_stay_where_they_were_for_kernels_of_any_size(name):
    torch.manual_seed(0)
    base = getattr(torchvision.models, name)(weights=None, num_classes=5)
    for module in base.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data.mul_(4 / module.weight.abs().max())
        elif isinstance(module, nn.Dropout | torchvision.ops.StochasticDepth):
            module.p = 0.0
    classifier = "fc" if hasattr(base, "fc") else "classifier"
    x = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        before = base(x)
        after = modulate(copy.deepcopy(base), classifier=classifier)(x)
        published = modulate(copy.deepcopy(base), classifier=classifier, start="paper")(x)
    assert torch.equal(after, before)
    assert (published - before).norm() > 0.1 * before.norm(), "choose kernels that tanh changes"


@pytest.mark.parametrize("modulator", [KernelModulator, ChannelModulator])
@pytest.mark.parametrize("activation", ["tanh", "sin", "relu", "leaky_relu"])
@pytest.mark.parametrize("init", ["identity", "diagonal"])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_every_modulator_starts_at_the_kernel(modulator, activation, init, depth):
    torch.manual_seed(0)
    for weight in (7 * torch.randn(4, 3, 3, 2), torch.full((2, 2, 3, 2), 5.0), torch.zeros(2, 2, 3, 2)):
        made = modulator((3, 2), depth, activation, init, scale=kernel_scale(weight))
        assert torch.equal(made(weight), weight)
        if weight.any():
            made(weight).square().sum().backward()
            assert all(p.grad.abs().sum() > 0 for p in made.parameters() if p.numel())


@pytest.mark.float32
@pytest.mark.parametrize("options", [{}, {"depth": 1}, {"activation": "sin"}, {"init": "diagonal"}])
def test_autocast_does_not_round_the_kernel_at_the_start(options):
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 3, 3)
    made = KernelModulator((3, 3), scale=kernel_scale(weight), **options)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made(weight), weight)


def test_the_scale_is_twice_the_root_mean_square_of_the_kernel():
    assert kernel_scale(torch.tensor([[[[3.0, -4.0]]]])) == pytest.approx(2 * (25 / 2) ** 0.5)
    assert kernel_scale(torch.zeros(1, 1, 1, 1)) == 1.0
    layer = modulate(nn.Sequential(nn.Conv2d(1, 1, 2)), classifier=None)[0]
    w = layer.parametrizations.weight.original
    assert layer.parametrizations.weight[0].scale.item() == pytest.approx(2 * w.square().mean().sqrt().item())


def test_the_meta_gradient_of_an_exact_start_equals_the_equation_by_autograd():
    """KM with `start="exact"` against the same strategy with W~ written out in plain operations."""
    strategy, episodes = small_strategy("km", start="exact"), random_episodes()
    with torch.no_grad():
        for modulator in strategy.adapted.modulators.modulators:
            for layer in modulator.layers:
                layer.add_(0.1 * torch.randn_like(layer))
    actual = gradients(strategy, meta_loss(strategy, episodes, inner_lr=0.4, inner_steps=2).loss)

    def plain(self, kernel):
        rows, (u1, u2), s = kernel.flatten(-2), self.layers, self.scale  # [..., O, C, k]
        u1, u2 = (u.unsqueeze(-3) if u.dim() == 3 else u for u in (u1, u2))
        if u1.dim() == 4:
            rows = rows.unsqueeze(0)
        moved = torch.tanh(rows / s @ u1.mT) @ u2.mT - torch.tanh(rows / s)
        return (rows + s * moved).unflatten(-1, self.kernel_size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KernelModulator, "forward", plain)
        expected = gradients(strategy, meta_loss(strategy, episodes, inner_lr=0.4, inner_steps=2).loss)
    assert_close(actual, expected)


def test_a_run_from_random_weights_starts_as_published():
    strategy = small_strategy("km")
    assert all(modulator.scale is None for modulator in strategy.adapted.modulators.modulators)


@pytest.mark.parametrize("start", ["paper", "exact"])
def test_a_pack_says_its_start_and_goes_with_no_other(tmp_path, start):
    torch.manual_seed(0)
    base = Mixed()
    pack = save_pack(modulate(copy.deepcopy(base), start=start), tmp_path / "a")
    assert pack.modulation["start"] == start
    x, model = images(), copy.deepcopy(base).eval()
    load_pack(model, tmp_path / "a")
    torch.testing.assert_close(model(x), load_into_plain(base, tmp_path / "a")(x), rtol=0, atol=0)
    other = modulate(copy.deepcopy(base), start="exact" if start == "paper" else "paper")
    with pytest.raises(metakm.UserError, match=rf"got other arguments: start='{start}' \(the model has"):
        load_pack(other, tmp_path / "a")


def load_into_plain(base, path):
    model = copy.deepcopy(base).eval()
    load_pack(model, path)
    return model


def test_a_pack_from_before_there_were_two_starts_has_the_published_one(tmp_path, monkeypatch):
    torch.manual_seed(0)
    base = Mixed()
    model = modulate(copy.deepcopy(base), start="paper").eval()
    monkeypatch.setattr("metakm.modulation.pack._arguments", arguments_of_old)
    save_pack(model, tmp_path / "old")
    monkeypatch.undo()
    x, loaded = images(), load_into_plain(base, tmp_path / "old")
    assert torch.equal(loaded(x), model(x))
    load_pack(modulate(copy.deepcopy(base), layers=()), save_without_modulators(base, tmp_path))


def arguments_of_old(found):
    known = {name: value for name, value in vars(found).items() if name != "start"}
    return {**known, "layers": list(found.layers), "modulator": found.modulator.__name__}


def save_without_modulators(base, folder):
    """Of a model without modulators the start means nothing."""
    save_pack(modulate(copy.deepcopy(base), layers=(), start="paper"), folder / "norms")
    return folder / "norms"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "tanh"}, "Expected start"),
        ({"init": "orthogonal"}, 'Expected init="identity" or "diagonal" for an exact start, got "orthogonal"'),
        ({"modulator": nn.Identity}, "Expected Identity to take a scale for an exact start, got none"),
    ],
)
def test_what_has_no_exact_start_is_refused_and_the_model_left_as_it_was(options, message):
    model = resnet18()
    with pytest.raises(metakm.UserError, match=message):
        modulate(model, **options)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(hasattr(m, "parametrizations") for m in model.modules())


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(metakm.UserError, match="Expected a positive scale"):
        KernelModulator((3, 3), scale=scale)


def test_cases_of_every_kind_start_where_they_were():
    for builder, classifier in CASES.values():
        torch.manual_seed(0)
        base, x = builder(), images()
        before = base(x)
        after = modulate(copy.deepcopy(base), classifier=classifier)(x)
        assert torch.equal(after, before)

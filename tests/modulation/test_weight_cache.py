"""In evaluation W~ is kept between calls, and never beyond what it was computed from."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from metakm.modulation import make_pack, modulate, swap
from metakm.modulation.weight_cache import CachedParametrization

MODULATORS = ("kernel", "channel", "low-rank")


def network():
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(72, 2)
    return nn.Sequential(*layers)


@pytest.fixture(params=MODULATORS)
def model(request):
    torch.manual_seed(0)
    made = modulate(network().eval(), classifier="5", modulator=request.param)
    return scatter(made)


def scatter(model):
    """Take the modulators away from their start."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


IMAGES = torch.randn(2, 3, 8, 8, dtype=torch.float64)


def kept(model):
    return model[0].parametrizations.weight._kept


def fresh(model):
    """What the model computes when nothing is kept: with gradients it never is."""
    return model(IMAGES).detach()


@torch.no_grad()
def output(model):
    return model(IMAGES)


def edits(model):
    layer = model[0].parametrizations.weight
    modulator = next(layer[0].parameters())
    trained = [p for p in model.parameters() if p.requires_grad]
    other = scatter(copy.deepcopy(model))

    def step():
        for parameter in trained:
            parameter.grad = torch.ones_like(parameter)
        torch.optim.Adam(trained, lr=0.1).step()

    def old_step():  # of optimisers that write through `.data`
        modulator.data.add_(0.1)

    def replace():
        modulator.data = modulator.data + 0.1

    return {
        "an optimiser's step": step,
        "a write to the modulator": lambda: modulator.mul_(1.1),
        "a write to W": lambda: layer.original.mul_(1.1),
        "a write through .data": old_step,
        "new data": replace,
        "new data of W": lambda: setattr(layer.original, "data", layer.original.data * 1.1),
        "load_state_dict": lambda: model.load_state_dict(other.state_dict()),
        "swap": lambda: swap(model, make_pack(other)),
    }


@pytest.mark.parametrize("edit", list(edits(modulate(network(), classifier="5"))))
def test_an_edit_is_seen_by_the_next_call(model, edit):
    before = output(model)
    assert kept(model) is not None
    with torch.no_grad():
        edits(model)[edit]()
    after = output(model)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, fresh(model), rtol=1e-12, atol=1e-12)


def test_the_same_tensor_is_used_until_then(model):
    output(model)
    first = kept(model)
    torch.testing.assert_close(output(model), fresh(model), rtol=1e-12, atol=1e-12)
    output(model)
    with torch.no_grad():
        weight = model[0].weight
        assert model[0].weight is weight
    with torch.inference_mode():
        assert model[0].weight is weight
    assert kept(model) is not first  # the call with gradients in between has dropped it


def test_gradients_and_training_are_those_of_a_model_that_keeps_nothing(model):
    output(model)
    model(IMAGES).square().sum().backward()
    assert kept(model) is None
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    other = copy.deepcopy(model)
    other.zero_grad()
    other(IMAGES).square().sum().backward()
    assert all(torch.equal(p.grad, gradients[name]) for name, p in other.named_parameters() if p.requires_grad)
    assert any(g.abs().max() > 0 for name, g in gradients.items() if "parametrizations" in name)
    output(model)
    model.train()
    output(model)
    assert kept(model) is None


def test_a_model_modulated_in_evaluation_stays_in_it():
    model = modulate(network().eval(), classifier="5")
    assert not any(module.training for module in model.modules())
    assert all(module.training for module in modulate(network(), classifier="5").modules())


def test_copies_and_files_do_not_hold_what_is_kept(model):
    parametrizations = model[0].parametrizations
    empty = len(pickle.dumps(parametrizations))
    output(model)
    assert kept(model) is not None
    assert len(pickle.dumps(parametrizations)) == empty
    assert kept(copy.deepcopy(model)) is None
    assert not any("kept" in name for name in model.state_dict())


def test_other_tensors_in_a_functional_call_have_their_own(model):
    output(model)
    others = {name: t + 0.1 for name, t in model.state_dict().items() if t.is_floating_point()}
    with torch.no_grad():
        found = functional_call(model, others, (IMAGES,))
    expected = copy.deepcopy(model)
    expected.load_state_dict(others, strict=False)
    torch.testing.assert_close(found, fresh(expected), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(output(model), fresh(model), rtol=1e-12, atol=1e-12)


def test_another_precision_is_computed_anew(model):
    output(model)
    model.float()
    with torch.no_grad():
        assert model[0].weight.dtype == torch.float32


def test_tensors_of_inference_mode_do_not_count_writes_and_are_not_kept():
    made = modulate(network().eval(), classifier="5")
    with torch.inference_mode():
        model = copy.deepcopy(made)
        model(IMAGES)
    assert kept(model) is None


def test_another_thread_may_drop_what_is_kept_at_any_moment(model, monkeypatch):
    expected, is_current = output(model), CachedParametrization._is_current

    def dropped(layer, kept):
        layer._kept = None
        return is_current(layer, kept)

    monkeypatch.setattr(CachedParametrization, "_is_current", dropped)
    assert torch.equal(output(model), expected)


@torch.no_grad()
def test_under_autocast_and_after_a_write_to_it_nothing_is_kept(model):
    model, images = model.float(), IMAGES.float()
    expected = model(images)
    model[0].parametrizations.weight._kept = None
    with torch.autocast("cpu", torch.bfloat16):
        model(images)
    assert torch.equal(model(images), expected)
    model[0].weight.zero_()  # of W~, not of W
    assert torch.equal(model(images), expected)


def test_another_parametrization_after_the_modulator_is_seen():
    class Times(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.ones(()))

        def forward(self, weight):
            return self.factor * weight

    model = modulate(network(), classifier="5").eval()
    parametrize.register_parametrization(model[0], "weight", Times())
    with torch.no_grad():
        before = model[0].weight.clone()
        model[0].parametrizations.weight[1].factor.fill_(3)
        torch.testing.assert_close(model[0].weight, 3 * before)


class Gain(nn.Module):
    """A modulator of somebody's own, with a number that is no tensor."""

    def __init__(self, kernel_size, *_, scale=None):
        del scale
        super().__init__()
        self.factor, self.strength = nn.Parameter(torch.ones(kernel_size)), 0.0

    def forward(self, kernel):
        return kernel * (1 + self.strength * self.factor)


def test_modulators_of_ones_own_are_computed_in_every_call():
    model = modulate(nn.Sequential(nn.Conv2d(3, 4, 3)), modulator=Gain, classifier=None).eval()
    with torch.no_grad():
        before = model(IMAGES)
        model[0].parametrizations.weight[0].strength = 5.0
        after = model(IMAGES)
    assert not torch.allclose(after, before)

"""Networks that use one layer, or one parameter, in several places."""

import copy
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from convnets import images
from small import assert_close, random_episodes
from torch import nn

import metakm
from metakm.learning.inner_loop import meta_loss
from metakm.models.layers import Linear
from metakm.modulation import load_pack, merge, modulate, replace_norm, save_pack
from metakm.strategies import SharedParameters, call_with


class Twice(nn.Module):
    """A linear layer and a convolution with two names each, and two convolutions with one weight."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.again = self.stem2 = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = self.same_norm = nn.BatchNorm2d(4)
        self.tied = nn.Conv2d(4, 4, 3, padding=1)
        self.tied.weight = self.again.weight
        self.first = self.second = nn.Linear(4, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = self.same_norm(self.stem2(self.again(x))).relu()
        return self.fc(self.second(self.first(self.tied(x).mean((2, 3))).relu()))


class Backbone(nn.Module):
    out_features = 4

    def __init__(self, tie):
        super().__init__()
        self.conv = metakm.Conv4(1, 4, "stride")
        self.first = Linear(4, 4)
        self.second = self.first if tie == "module" else Linear(4, 4)
        if tie == "parameter":
            self.second.weight, self.second.bias = self.first.weight, self.first.bias

    def forward(self, x):
        return self.second(torch.relu(self.first(self.conv(x))))


@pytest.mark.parametrize("algo", ["maml", "km", "boil", "maml-proto"])
@pytest.mark.parametrize("tie", ["module", "parameter"])
def test_a_strategy_adapts_a_shared_layer_in_all_its_places_and_leaves_it_as_it_was(algo, tie):
    """Against the same network that computes with the parameters of one layer twice, without sharing anything."""
    torch.manual_seed(0)
    strategy = metakm.make_strategy(algo, Backbone(tie), ways=4)
    network = strategy.network.backbone
    before = {name: tensor.clone() for name, tensor in strategy.state_dict().items()}
    episodes = random_episodes()
    loss = meta_loss(strategy, episodes, inner_lr=0.2, inner_steps=2).loss
    actual = dict(zip(("w", "b"), torch.autograd.grad(loss, list(network.first.parameters())), strict=True))

    class Once(Backbone):
        def forward(self, x):
            return self.first(torch.relu(self.first(self.conv(x))))

    plain = Once("nothing")
    del plain.second
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("second")})
    other = metakm.make_strategy(algo, plain, ways=4)
    state = {k: v for k, v in before.items() if "second" not in k}
    other.load_state_dict(state)
    expected = meta_loss(other, episodes, inner_lr=0.2, inner_steps=2).loss
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    grads = torch.autograd.grad(expected, list(plain.first.parameters()))
    assert_close(actual, dict(zip(("w", "b"), grads, strict=True)))
    assert isinstance(network.first.weight, nn.Parameter)
    assert all(torch.equal(tensor, before[name]) for name, tensor in strategy.state_dict().items())
    assert (network.second is network.first) == (tie == "module")


def test_parameters_whose_names_differ_in_their_dots_alone_stay_apart():
    network = nn.Sequential(OrderedDict([("a", nn.Sequential(OrderedDict(b__c=nn.Linear(2, 2, bias=False))))]))
    network.add_module("a__b", nn.Sequential(OrderedDict(c=nn.Linear(2, 2, bias=False))))
    names = [name for name, _ in network.named_parameters()]
    shared = SharedParameters(network, names)
    assert shared.names == tuple(names) == ("a.b__c.weight", "a__b.c.weight")
    x = torch.randn(3, 2)
    assert torch.equal(call_with(network, shared(), x), network(x))
    assert [name for name, _ in shared.named_parameters()] == ["a__b__c__weight", "a__b__c__weight_"]


def test_modulation_packs_and_merge_of_shared_layers(tmp_path):
    torch.manual_seed(0)
    base, x = Twice(), images()
    model = modulate(copy.deepcopy(base))
    assert torch.equal(model.eval()(x), base.eval()(x))
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        optimiser.zero_grad()
        F.cross_entropy(model.train()(x), torch.tensor([0, 1, 2, 0])).backward()
        optimiser.step()
    trained = model.eval()(x)
    assert not torch.allclose(trained, base.eval()(x))
    save_pack(model, tmp_path / "a")
    loaded = copy.deepcopy(base)
    load_pack(loaded, tmp_path / "a")
    assert torch.equal(loaded.eval()(x), trained)
    torch.testing.assert_close(merge(model)(x), trained)
    merged = merge(model)
    assert merged.again is merged.stem2


def test_a_norm_under_two_names_is_replaced_under_both():
    model = replace_norm(Twice())
    assert isinstance(model.norm, nn.GroupNorm)
    assert model.same_norm is model.norm


@pytest.mark.parametrize("prefix", ["compiled", "parallel"])
def test_a_pack_of_a_wrapped_network_is_one_of_the_network(tmp_path, prefix):
    torch.manual_seed(0)
    base, x = Twice().eval(), images()
    model = modulate(copy.deepcopy(base))
    with torch.no_grad():
        model.fc.bias.add_(1.0)
    wrapped = torch.compile(model, backend="eager") if prefix == "compiled" else nn.DataParallel(model)
    save_pack(wrapped, tmp_path / "a")
    load_pack(base, tmp_path / "a")
    assert torch.equal(base(x), model(x))
    load_pack(wrapped, tmp_path / "a")
    assert torch.equal(merge(wrapped)(x), merge(model)(x))

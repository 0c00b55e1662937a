"""What learn2learn's own unit tests check of MAML and Meta-SGD, for metakm's strategies, in float64.

Those of cloning become: the forward pass before adaptation is the network's own, for each task. Those of `allow_unused`
and `allow_nograd` become: what the loss does not depend on, and what is frozen, stays as it is without being told.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from small import gradients
from torch import nn

import metakm
from metakm.data import Episodes
from metakm.learning.inner_loop import GradientDescent, evaluate_episodes, meta_loss
from metakm.strategies.maml import MAML
from metakm.strategies.meta_sgd import MetaSGD

LR, STEPS, INPUTS, WIDTH = 0.1, 3, 7, 20
LEARNERS = [MAML, MetaSGD]


def plain_network():
    """A perceptron with a buffer, on `[n, C, H, W]`."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(10, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.Sigmoid(), nn.Linear(WIDTH, WIDTH)
    )
    network.register_buffer("unused", torch.zeros(1, 2, 3, 4))
    return network


def build(cls, network=None):
    backbone = metakm.carry_tasks(network or plain_network(), image_shape=(1, 2, 5))
    torch.manual_seed(1)
    return cls(backbone, 4)


def episodes(tasks=2):
    generator = torch.Generator().manual_seed(2)

    def half(n):
        return torch.randn(tasks, n, 1, 2, 5, generator=generator), torch.arange(n).remainder(4).expand(tasks, -1)

    return Episodes(*half(INPUTS), *half(INPUTS + 1), range(tasks))


def adapted_copy(strategy, tasks, steps=STEPS, first_order=False):
    """What the inner loop makes of `adapted`, `[T, ...]` each."""
    inner = GradientDescent(strategy, LR, steps, first_order, graph=True)
    return strategy.adapt(inner, strategy.encode(tasks.support_images), tasks.support_labels)


@pytest.mark.parametrize("cls", LEARNERS)
@pytest.mark.parametrize("first_order", [False, True])
def test_before_any_step_each_task_predicts_as_the_network_does(cls, first_order):
    network, tasks = plain_network(), episodes()
    strategy = build(cls, network)
    head = strategy.network.head
    for _ in range(2):
        logits = strategy.predict(adapted_copy(strategy, tasks, 0, first_order), tasks.query_images)
        for t in range(2):
            expected = F.linear(network(tasks.query_images[t]), head.weight, head.bias)
            torch.testing.assert_close(logits[t], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cls", LEARNERS)
@pytest.mark.parametrize("steps", [0, STEPS])
def test_the_graph_reaches_every_parameter(cls, steps):
    strategy = build(cls)
    loss = meta_loss(strategy, episodes(), inner_lr=LR, inner_steps=steps).loss
    parameters = dict(strategy.named_parameters())
    for name, gradient in gradients(strategy, loss).items():
        unused = steps == 0 and name.startswith("rates.")  # no step, no rate
        assert (gradient.norm() == 0) == unused, name
        assert gradient.shape == parameters[name].shape


@pytest.mark.parametrize("cls", LEARNERS)
def test_a_step_lowers_the_loss_it_is_taken_on(cls):
    tasks, strategy = episodes(), build(cls)
    same = Episodes(tasks.support_images, tasks.support_labels, tasks.support_images, tasks.support_labels, tasks.index)
    losses = [evaluate_episodes(strategy, same, inner_lr=LR, inner_steps=steps).loss for steps in (0, 1, 2)]
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize("cls", LEARNERS)
def test_the_first_order_gradient_is_that_of_the_query_loss_at_the_adapted_network(cls):
    """learn2learn checks it for MAML alone."""
    tasks, strategy = episodes(tasks=1), build(cls)
    fast = adapted_copy(strategy, tasks, first_order=True)
    reference = copy.deepcopy(strategy)
    with torch.no_grad():
        for own, adapted in zip(reference.adapted.parameters(), fast.parameters(), strict=True):
            own.copy_(adapted[0])
    expected = meta_loss(reference, tasks, inner_lr=LR, inner_steps=0).loss
    found = meta_loss(strategy, tasks, inner_lr=LR, inner_steps=STEPS, first_order=True).loss
    names = {name for name, _ in strategy.named_parameters() if not name.startswith("rates.")}
    expected, found = gradients(reference, expected), gradients(strategy, found)
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-14)


def test_meta_sgd_learns_a_rate_for_every_weight_from_the_inner_rate_on():
    strategy, maml = build(MetaSGD), build(MAML)
    count = sum(p.numel() for p in maml.parameters())
    assert sum(p.numel() for p in strategy.parameters()) == 2 * count
    assert all(torch.equal(rate, torch.ones_like(rate)) for rate in strategy.rates.values()), "times the inner rate"
    tasks = episodes()
    losses = [meta_loss(each, tasks, inner_lr=LR, inner_steps=STEPS).loss for each in (strategy, maml)]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)


@pytest.mark.parametrize("cls", LEARNERS)
def test_what_the_loss_does_not_depend_on_stays_and_nobody_need_say_so(cls):
    class Partial(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(10, WIDTH), nn.Linear(3, 3)

        def forward(self, x):
            return self.used(x.flatten(1)).relu()

    strategy, tasks = build(cls, Partial()), episodes()
    fast = dict(adapted_copy(strategy, tasks).named_parameters())
    moved = {
        name: not torch.equal(fast[name], p.expand_as(fast[name])) for name, p in strategy.adapted.named_parameters()
    }
    assert {name for name, has in moved.items() if not has} == {name for name in moved if "idle" in name} != set()
    meta_loss(strategy, tasks, inner_lr=LR, inner_steps=STEPS).loss.backward()
    without = {name for name, p in strategy.named_parameters() if p.grad is None}
    assert without == {name for name, _ in strategy.named_parameters() if "idle" in name}


@pytest.mark.parametrize("cls", LEARNERS)
def test_a_frozen_parameter_stays_and_the_others_are_adapted(cls):
    strategy, tasks = build(cls), episodes()
    frozen = next(p for name, p in strategy.network.named_parameters() if p.shape == (WIDTH, WIDTH))
    frozen.requires_grad_(False)
    before = frozen.clone()
    fast = dict(adapted_copy(strategy, tasks).named_parameters())
    moved = [
        p is not frozen and not torch.equal(fast[name], p.expand_as(fast[name]))
        for name, p in strategy.adapted.named_parameters()
    ]
    assert moved.count(False) == 1
    meta_loss(strategy, tasks, inner_lr=LR, inner_steps=STEPS).loss.backward()
    assert frozen.grad is None
    assert torch.equal(frozen, before)
    assert all(p.grad is not None for p in strategy.network.parameters() if p is not frozen)


@pytest.mark.parametrize("cls", LEARNERS)
def test_a_module_that_is_registered_twice_is_adapted_once(cls):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 4, 2), nn.ReLU())
            self.end = nn.Sequential(nn.Flatten(), nn.Linear(16, WIDTH))
            self.whole = nn.Sequential(self.body, self.end)

        def forward(self, x):
            return self.whole(x)

    torch.manual_seed(0)
    network, tasks = Twice(), episodes()
    strategy = build(cls, network)
    assert strategy.parameter_counts()[0] == sum(p.numel() for p in network.parameters()) + 4 * (WIDTH + 1)
    plain = copy.deepcopy(network)
    head = {name: p.detach().clone().requires_grad_() for name, p in strategy.network.head.named_parameters()}
    fast, losses = [*plain.parameters(), *head.values()], []
    names = [*dict(plain.named_parameters())]
    for t in range(2):
        moved = fast
        for part in ("support", "query"):
            values = dict(zip(names, moved[: len(names)], strict=True))
            features = torch.func.functional_call(
                plain, values, (getattr(tasks, f"{part}_images")[t],), tie_weights=True
            )
            loss = F.cross_entropy(F.linear(features, *moved[len(names) :]), getattr(tasks, f"{part}_labels")[t])
            if part == "support":
                slopes = torch.autograd.grad(loss, moved, create_graph=True)
                moved = [p - LR * g for p, g in zip(moved, slopes, strict=True)]
        losses.append(loss)
    found = meta_loss(strategy, tasks, inner_lr=LR, inner_steps=1).loss
    torch.testing.assert_close(found, torch.stack(losses).mean(), rtol=1e-10, atol=0)

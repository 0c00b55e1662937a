"""The strategies with an adaptation or an outer loss of their own, each against a loop written from its paper."""

import math
import re
import types

import pytest
import torch
import torch.nn.functional as F
from oracle import conv4, modulate, unrolled_loss
from small import assert_close, gradients, random_episodes, small_strategy, strategies_with
from torch import nn

import metakm
from metakm.config import RunConfig
from metakm.learning.inner_loop import evaluate_episodes, meta_loss
from metakm.presets import preset_config
from metakm.run.build import build_learner
from metakm.strategies import registry
from metakm.strategies.anil import ANIL

LR, STEPS = 0.4, 3
BN_MODES = ("transductive", "support", "running", "frozen")


@pytest.mark.parametrize(
    ("algo", "adapted", "total"),
    [
        ("maml", 112_724, 113_236),
        ("anil", 1_300, 113_236),
        ("km", 2_204, 113_236 + 4 * 162),
        ("boil", 112_724 - 1_300, 113_236),
        ("bn", 4 * 2 * 64 + 1_300, 113_236),
        ("meta-sgd", 112_724, 113_236 + 112_724),
        ("reptile", 113_236, 113_236),
        ("imaml", 113_236, 113_236),
        ("r2d2", 0, 113_236 - 1_300 + 2),
        ("cavia", 100, 113_236 + 100 + 4 * 128 * 101),
        (
            "meta-curvature",
            112_724,
            113_236 + 112_724 - 64**2 * 27 - 9 * 64 - 64 * 20 + 64**2 * 8 + 1 + 4 * 9**2 + 20**2,
        ),
        ("baseline", 1_300, 113_236),
        ("baseline++", 1_280, 113_236 - 20),
        ("finetune", 113_236 - 20, 113_236 - 20),
        ("simpleshot", 0, 113_236 - 1_300 + 64),
        ("protonet", 0, 113_236 - 1_300),
        ("maml-proto", 112_724, 113_236),
        ("anil-proto", 1_300, 113_236),
        ("km-proto", 2_204, 113_236 + 4 * 162),
    ],
)
def test_parameter_counts_of_omniglots_20_way_network(algo, adapted, total):
    strategy = metakm.make_strategy(algo, metakm.Conv4(1, 64, "stride"), 20)
    assert strategy.parameter_counts() == (adapted, total)


@pytest.mark.parametrize("first_order", [False, True])
def test_meta_sgd_and_its_rates_get_the_gradient_of_a_hand_unrolled_loop(first_order):
    strategy, episodes = small_strategy("meta-sgd"), random_episodes()
    with torch.no_grad():
        for rate in strategy.rates.values():
            rate.add_(0.5 * torch.randn_like(rate))
    network = dict(strategy.network.named_parameters())
    adapted = {k: p for k, p in network.items() if ".norm." not in k}
    rates = {k: LR * strategy.rates[k.replace(".", "__")] for k in adapted}

    def predict(fast, images, **_):
        return conv4({**network, **fast}, images, "stride")

    expected = gradients(strategy, unrolled_loss(predict, adapted, episodes, rates, STEPS, first_order))
    assert sum(g.norm() for k, g in expected.items() if k.startswith("rates")) > 1e-3
    result = meta_loss(strategy, episodes, inner_lr=LR, inner_steps=STEPS, first_order=first_order)
    assert_close(gradients(strategy, result.loss), expected)


@pytest.mark.parametrize("algo", ["km", "km-proto"])
@pytest.mark.parametrize("implicit", [False, True])
def test_km_leaves_linear_layers_within_a_backbone_to_the_outer_loop(algo, implicit):
    backbone = metakm.carry_tasks(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6)),
        image_shape=(3, 8, 8),
        bn_mode="transductive",
    )
    strategy = metakm.make_strategy(algo, backbone, ways=5, implicit=implicit)
    modulators = sum(p.numel() for p in strategy.adapted.modulators.parameters())
    biases, head, norm = 4, 6 * 5 + 5, 2 * 4
    assert strategy.parameter_counts()[0] == modulators + biases + head + implicit * norm


def test_meta_sgd_starts_as_maml():
    episodes = random_episodes()
    losses = [
        meta_loss(small_strategy(algo), episodes, inner_lr=LR, inner_steps=STEPS).loss for algo in ("maml", "meta-sgd")
    ]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)


def explicit_reptile(strategy, episodes, batches, epsilon):
    """Algorithm 2: k SGD steps on each task, then a step of epsilon towards the mean of where they ended."""
    phi = {k: p.detach() for k, p in strategy.network.named_parameters()}
    ends = []
    for t in range(len(episodes.support_images)):
        theta = phi
        for step in range(STEPS):
            images, labels = batches[step % len(batches)](t)
            theta = {k: v.clone().requires_grad_() for k, v in theta.items()}
            loss = F.cross_entropy(conv4(theta, images, "stride"), labels)
            grads = torch.autograd.grad(loss, list(theta.values()))
            theta = {k: (v - LR * g).detach() for (k, v), g in zip(theta.items(), grads, strict=True)}
        ends.append(theta)
    return {k: v + epsilon * torch.stack([end[k] - v for end in ends]).mean(0) for k, v in phi.items()}


@pytest.mark.parametrize(("shots", "queries", "parts"), [(1, 2, 2), (1, 5, 5), (2, 4, 2), (3, 2, 1)])
def test_reptiles_update_is_a_step_towards_the_end_of_explicit_sgd(shots, queries, parts):
    """Part i of m takes query images i, i + m, ... of each class; with SGD of rate epsilon alpha as the outer loop."""
    ways, epsilon = 4, 0.3
    strategy, episodes = small_strategy("reptile"), random_episodes(ways=ways, shots=shots, queries=queries)

    def part(i):
        images = [q.unflatten(0, (ways, queries))[:, i::parts].flatten(0, 1) for q in episodes.query_images]
        labels = torch.arange(ways).repeat_interleave(queries // parts)
        return lambda t: (images[t], labels)

    support = [lambda t: (episodes.support_images[t], episodes.support_labels[t])]
    expected = explicit_reptile(strategy, episodes, support + [part(i) for i in range(parts)], epsilon)
    outer = torch.optim.SGD(strategy.parameters(), lr=epsilon * LR)
    meta_loss(strategy, episodes, inner_lr=LR, inner_steps=STEPS).loss.backward()
    moved = max(p.grad.abs().max().item() for p in strategy.parameters())
    outer.step()
    assert moved > 1e-3
    for name, parameter in strategy.network.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-10, atol=1e-12)


def test_reptiles_loss_has_the_value_of_the_query_loss_it_reports():
    strategy, episodes = small_strategy("reptile"), random_episodes()
    result = meta_loss(strategy, episodes, inner_lr=LR, inner_steps=STEPS)
    expected = F.cross_entropy(result.logits.flatten(0, 1), episodes.query_labels.flatten())
    torch.testing.assert_close(result.loss.detach(), expected)


def test_reptile_adapts_to_the_support_set_alone_in_evaluation():
    strategy, episodes = small_strategy("reptile"), random_episodes()
    network = dict(strategy.network.named_parameters())

    def predict(fast, images, **_):
        return conv4(fast, images, "stride")

    expected = unrolled_loss(predict, network, episodes, LR, STEPS)
    actual = evaluate_episodes(strategy, episodes, inner_lr=LR, inner_steps=STEPS).loss
    torch.testing.assert_close(actual, expected.detach(), rtol=1e-10, atol=0)


def by_distance(x, prototypes, scaled):
    return torch.stack([-((x - c) ** 2).sum(1) for c in prototypes], 1) * (8 / x.shape[1] if scaled else 1)


def by_cosine(x, prototypes, _):
    return 3.0 * torch.stack([F.cosine_similarity(x, c, dim=1) for c in prototypes], 1)


@pytest.mark.parametrize("kind", ["euclidean", "scaled", "cosine"])
@pytest.mark.parametrize("bn_mode", BN_MODES)
def test_protonet_equals_a_hand_written_one(bn_mode, kind):
    options = {"distance": "cosine", "scale": 3.0} if kind == "cosine" else {"scaled_distance": kind == "scaled"}
    strategy = small_strategy("protonet", bn_mode=bn_mode, filters=12, **options)
    episodes = random_episodes(ways=3, shots=4)
    episodes.support_labels = torch.tensor([[2, 0, 1, 1, 0, 2, 2, 0, 0, 0, 2, 2]] * 3)  # uneven, in any order
    identity = {"head.weight": torch.eye(12), "head.bias": torch.zeros(12)}
    parameters = {**{f"backbone.{k}": p for k, p in strategy.backbone.named_parameters()}, **identity}
    frozen, losses, right = bn_mode == "frozen", [], []
    for t in range(3):
        support, labels = episodes.support_images[t], episodes.support_labels[t]
        z = conv4(parameters, support, "stride", frozen=frozen)
        z = F.normalize(z, dim=1) if kind == "cosine" else z  # the mean is of directions
        prototypes = [z[labels == k].mean(0) for k in range(3)]
        reference = support if bn_mode == "support" else None
        x = conv4(parameters, episodes.query_images[t], "stride", reference, frozen)
        logits = (by_cosine if kind == "cosine" else by_distance)(x, prototypes, kind == "scaled")
        losses.append(F.cross_entropy(logits, episodes.query_labels[t]))
        right.append((logits.argmax(1) == episodes.query_labels[t]).double().mean())
    expected = torch.stack(losses).mean()
    result = meta_loss(strategy, episodes, inner_lr=LR, inner_steps=STEPS)
    torch.testing.assert_close(result.loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(result.accuracy, torch.stack(right))
    assert_close(gradients(strategy, result.loss), gradients(strategy, expected))


def test_protonet_takes_any_number_of_ways_and_ignores_the_inner_settings():
    strategy = small_strategy("protonet", ways=4)
    episodes = random_episodes(ways=6)
    first = evaluate_episodes(strategy, episodes, inner_lr=LR, inner_steps=0)
    second = evaluate_episodes(strategy, episodes, inner_lr=9.0, inner_steps=5)
    assert first.logits.shape == (3, 18, 6)
    assert torch.equal(first.logits, second.logits)


PROTOTYPE_HEADS = ("maml-proto", "anil-proto", "km-proto")


def backbone_of(strategy):
    return strategy.backbone if isinstance(strategy, ANIL) else strategy.network.backbone


@pytest.mark.parametrize("bn_mode", ["transductive", "support"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("algo", PROTOTYPE_HEADS)
def test_prototype_heads_get_the_gradient_of_a_hand_unrolled_loop(algo, scaled, first_order, bn_mode):
    strategy, episodes = small_strategy(algo, bn_mode=bn_mode, filters=12), random_episodes(ways=3, shots=4)
    strategy.scaled_distance = scaled
    episodes.support_labels = torch.tensor([[2, 0, 1, 1, 0, 2, 2, 0, 0, 0, 2, 2]] * 3)  # uneven, in any order
    body = {f"backbone.{k}": p for k, p in backbone_of(strategy).named_parameters()}
    modulators = dict(strategy.adapted.modulators.named_parameters()) if algo == "km-proto" else {}
    chosen = {"maml-proto": ("conv.weight", "conv.bias"), "anil-proto": (), "km-proto": ("conv.bias",)}[algo]
    adapted = modulators | {k: p for k, p in body.items() if k.endswith(chosen)}

    def predict(fast, images, reference=None):
        parameters = {**body, **fast}
        for i in range(4 if modulators else 0):
            u = [fast[f"modulators.{i}.layers.{layer}"] for layer in (0, 1)]
            parameters[f"backbone.blocks.{i}.conv.weight"] = modulate(body[f"backbone.blocks.{i}.conv.weight"], *u)
        return conv4(parameters, images, "stride", reference if bn_mode == "support" else None)

    losses = []
    for t in range(3):
        labels = episodes.support_labels[t]
        features = predict(
            {**adapted, "head.weight": torch.eye(12), "head.bias": torch.zeros(12)}, episodes.support_images[t]
        )
        means = torch.stack([features[labels == k].mean(0) for k in range(3)])
        own = {k: p.clone() for k, p in adapted.items()}  # so that no inner gradient takes the way through the means
        scale = 8 / means.shape[1] if scaled else 1.0
        start = {**own, "head.weight": 2 * scale * means, "head.bias": -scale * (means**2).sum(1)}
        task = type(episodes)(**{k: v[t : t + 1] for k, v in vars(episodes).items()})
        losses.append(unrolled_loss(predict, start, task, LR, STEPS, first_order))
    expected = torch.stack(losses).mean()
    result = meta_loss(strategy, episodes, inner_lr=LR, inner_steps=STEPS, first_order=first_order)
    torch.testing.assert_close(result.loss, expected, rtol=1e-10, atol=0)
    assert_close(gradients(strategy, result.loss), gradients(strategy, expected))


@pytest.mark.parametrize("algo", PROTOTYPE_HEADS)
def test_prototype_heads_start_as_a_prototypical_network_of_any_number_of_ways(algo):
    strategy, episodes = small_strategy(algo), random_episodes(ways=6)
    baseline = small_strategy("protonet")
    weights = dict(backbone_of(strategy).state_dict())
    if algo == "km-proto":  # under the modulators' own start
        modulated = strategy.adapted.modulators(strategy.kernels())
        weights |= {k.removeprefix("backbone."): w for k, w in modulated.items()}
    baseline.backbone.load_state_dict(weights)
    expected = evaluate_episodes(baseline, episodes, inner_lr=LR, inner_steps=0)
    actual = evaluate_episodes(strategy, episodes, inner_lr=LR, inner_steps=0)
    torch.testing.assert_close(actual.logits.softmax(-1), expected.logits.softmax(-1))
    moved = evaluate_episodes(strategy, episodes, inner_lr=LR, inner_steps=STEPS)
    assert (moved.logits - actual.logits).abs().max() > 1e-3


@pytest.mark.parametrize("algo", ["protonet", *PROTOTYPE_HEADS])
def test_a_run_from_before_distances_had_a_scale_keeps_its_predictions(algo):
    config = preset_config(algo=algo, dataset="omniglot", ways=3, backbone="conv4-12-stride")
    older = {name: value for name, value in config.to_json().items() if name != "scaled_distance"}
    now, then = (build_learner(c, (1, 14, 14)).strategy.double() for c in (config, RunConfig.from_json(older)))
    assert (now.scaled_distance, then.scaled_distance) == (True, False)
    episodes, first = random_episodes(ways=3), {"inner_lr": LR, "inner_steps": 0}
    apart = [evaluate_episodes(s, episodes, **first).logits.diff(dim=-1) for s in (now, then)]
    torch.testing.assert_close(apart[0], apart[1] * 2 / 3)  # 12 features


@pytest.mark.parametrize("algo", ["protonet", *PROTOTYPE_HEADS])
def test_on_photographs_the_loss_of_class_means_starts_near_that_of_a_guess(algo):
    config = preset_config(algo=algo, dataset="mini-imagenet", ways=5)
    strategy = build_learner(config, (3, 84, 84)).strategy.double()
    episodes = random_episodes(tasks=2, ways=5, shots=1, channels=3, size=84)
    loss = evaluate_episodes(strategy, episodes, inner_lr=config.inner_lr, inner_steps=0).loss
    assert loss < 2 * math.log(5)


def test_a_start_of_an_unknown_parameter_is_refused():
    class Misled(ANIL):
        def adapt(self, inner, encoded, labels):
            return inner.descend((encoded, labels), start={"wieght": torch.zeros(3, 4, 3)})

    strategy = Misled(metakm.Conv4(1, 3, "stride", image_size=14), 4)
    with pytest.raises(metakm.UserError, match="'weight'"):
        meta_loss(strategy, random_episodes(), inner_lr=LR, inner_steps=1)


@pytest.mark.parametrize(
    ("algo", "option"),
    [
        ("protonet", "first_order"),
        ("protonet", "learn_inner_lr"),
        ("reptile", "first_order"),
        ("reptile", "learn_inner_lr"),
        ("meta-sgd", "learn_inner_lr"),
        ("boil", "first_head_lr"),
        ("km-proto", "first_head_lr"),
        ("boil", "zero_head"),
        ("km-proto", "zero_head"),
        ("km-proto", "normal_head"),
        ("km", "scaled_distance"),
    ],
)
def test_options_that_would_change_nothing_are_refused(algo, option):
    flag = "--" + option.replace("_", "-")
    with pytest.raises(metakm.UserError, match=f"{flag} has no effect with '{algo}'; leave it out$"):
        preset_config(algo=algo, ways=3, **{option: 2.0 if option == "first_head_lr" else True})


@pytest.mark.parametrize("algo", strategies_with("normal_head"))
def test_a_normal_head_is_drawn_by_the_seed_and_changes_nothing_else(algo):
    config = preset_config(algo=algo, ways=20, backbone="conv4-64-stride", normal_head=True)
    plain = build_learner(preset_config(algo=algo, ways=20, backbone="conv4-64-stride"), (1, 28, 28)).strategy
    strategy, again = (build_learner(config, (1, 28, 28)).strategy for _ in range(2))
    head = strategy.head_parameters()
    weight, bias = (next(p for name, p in head.items() if name.endswith(end)) for end in ("weight", "bias"))
    assert weight.std().item() == pytest.approx(1, abs=0.1)
    assert weight.abs().max() > 2, "normal, not uniform"
    assert not bias.any()
    ours = {id(p) for p in head.values()}
    for (name, p), q, other in zip(strategy.named_parameters(), again.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q), name
        assert torch.equal(p, other) != (id(p) in ours), name


@pytest.mark.parametrize("algo", strategies_with("zero_head"))
@pytest.mark.parametrize("zero", [True, False])
def test_with_a_head_that_starts_at_zero_the_order_of_the_classes_does_not_matter(algo, zero):
    config = preset_config(algo=algo, ways=4, backbone="conv4-3-stride", zero_head=zero)
    strategy = build_learner(config, (1, 14, 14)).strategy.double()
    assert all((p.count_nonzero() == 0) == zero for p in strategy.head_parameters().values())
    episodes, order = random_episodes(), torch.tensor([2, 0, 3, 1])
    reordered = types.SimpleNamespace(**vars(episodes))
    reordered.support_labels, reordered.query_labels = order[episodes.support_labels], order[episodes.query_labels]
    one, other = (evaluate_episodes(strategy, e, inner_lr=LR, inner_steps=STEPS).logits for e in (episodes, reordered))
    assert (one.max() - one.min()) > 0.1
    assert ((one - other[:, :, order]).abs().max() < 1e-12) == zero


@pytest.mark.parametrize("option", ["first_head_lr", "zero_head"])
@pytest.mark.parametrize("prefix", [None, "haed."])
def test_an_option_for_a_head_that_a_plugin_does_not_name_is_refused(monkeypatch, option, prefix):
    class Headless(ANIL):
        head_prefix = prefix

    monkeypatch.setitem(registry.strategies.entries, "headless", Headless)
    flags = {"learn_inner_lr": True, "inner_lr_per_step": True, "zero_head": False, "first_head_lr": 0.0}
    config = preset_config(algo="headless", ways=3, **flags | {option: 2.0 if option == "first_head_lr" else True})
    said = f"Headless.head_prefix to name a head in `adapted` for {option}, got {prefix!r}; set it, or register"
    with pytest.raises(metakm.UserError, match=re.escape(said)):
        build_learner(config, (1, 28, 28))


def test_a_strategy_that_adapts_nothing_must_say_how_it_adapts():
    class Idle(metakm.Strategy):
        def __init__(self):
            super().__init__()
            self.adapted = nn.Module()

    with pytest.raises(metakm.UserError, match="override `adapt`"):
        meta_loss(Idle(), random_episodes(), inner_lr=LR, inner_steps=1)


def test_reptile_has_no_rate_for_each_step():
    strategy = small_strategy("reptile")
    rates = [torch.tensor([0.1, 0.2])] * len(list(strategy.adapted.parameters()))
    with pytest.raises(metakm.UserError, match="the same in every step for Reptile"):
        meta_loss(strategy, random_episodes(), inner_lr=rates, inner_steps=2)


@pytest.mark.parametrize("algo", ["protonet", *PROTOTYPE_HEADS])
def test_the_scale_of_distances_is_an_option_with_one_default(algo):
    backbone = metakm.Conv4(1, 4)
    assert not metakm.make_strategy(algo, backbone, 3).scaled_distance
    assert not metakm.Learner(algo, backbone=backbone, ways=3, inner_lr=0.1, inner_steps=1).strategy.scaled_distance
    assert metakm.make_strategy(algo, backbone, 3, scaled_distance=True).scaled_distance

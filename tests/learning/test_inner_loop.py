"""The batched inner loop against a hand-unrolled loop and against `higher`, one task at a time, in float64."""

import pytest
import torch
from oracle import conv4, higher_loss, modulate, unrolled_loss
from small import (
    CLASS_TRAINING,
    WITHOUT_STEPS,
    assert_close,
    gradients,
    learned_parameters,
    random_episodes,
    small_strategy,
    strategies_with,
)

import metakm
from metakm.learning import fast_weights
from metakm.learning.inner_loop import GradientDescent, evaluate_episodes, meta_loss
from metakm.strategies.registry import strategy_class

CASES = {
    "maml": ("maml", {}),
    "maml-implicit": ("maml", {"implicit": True}),
    "anil": ("anil", {}),
    "boil": ("boil", {}),
    "bn": ("bn", {}),
    "km": ("km", {}),
    "km-implicit": ("km", {"implicit": True}),
}
LR, STEPS = 0.4, 3
WITH_STEPS = [name for name in metakm.available_strategies() if name not in WITHOUT_STEPS]
WITH_A_HEAD = [name for name in WITH_STEPS if "proto" not in name and name not in CLASS_TRAINING]


def per_task(algo, strategy, options, downsample, bn_mode="transductive"):
    """(predict, adapted) of the oracle for one strategy; the tensors are the strategy's own parameters."""

    def network_logits(parameters, images, reference):
        reference = reference if bn_mode == "support" else None
        return conv4(parameters, images, downsample, reference, frozen=bn_mode == "frozen")

    if algo == "anil":
        outer = {f"backbone.{k}": p for k, p in strategy.backbone.named_parameters()}
        adapted = {f"head.{k}": p for k, p in strategy.adapted.named_parameters()}
        return lambda fast, images, reference=None: network_logits({**outer, **fast}, images, reference), adapted
    network = dict(strategy.network.named_parameters())
    adapted = {k: p for k, p in network.items() if options.get("implicit") or ".norm." not in k}
    if algo == "boil":
        adapted = {k: p for k, p in adapted.items() if "head" not in k}
    if algo == "bn":
        adapted = {k: p for k, p in network.items() if ".norm." in k or "head" in k}
    if algo != "km":
        return lambda fast, images, reference=None: network_logits({**network, **fast}, images, reference), adapted
    kernels = [k for k in network if k.endswith("conv.weight")]
    adapted = {k: p for k, p in adapted.items() if k not in kernels}
    for i, modulator in enumerate(strategy.adapted.modulators.modulators):
        adapted |= {f"u{i}.{j}": layer for j, layer in enumerate(modulator.layers)}

    def predict(fast, images, reference=None):
        modulated = {k: modulate(network[k], fast[f"u{i}.0"], fast[f"u{i}.1"]) for i, k in enumerate(kernels)}
        return network_logits({**network, **fast, **modulated}, images, reference)

    return predict, adapted


@pytest.mark.parametrize("downsample", ["stride", "pool"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("first_order", [False, True], ids=["second-order", "first-order"])
def test_meta_gradient_equals_hand_unrolled_loop(case, downsample, first_order):
    algo, options = CASES[case]
    size = 16 if downsample == "pool" else 14
    strategy = small_strategy(algo, downsample=downsample, size=size, **options)
    episodes = random_episodes(size=size)
    predict, adapted = per_task(algo, strategy, options, downsample)
    expected = unrolled_loss(predict, adapted, episodes, LR, STEPS, first_order)
    actual = meta_loss(strategy, episodes, inner_lr=LR, inner_steps=STEPS, first_order=first_order).loss
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=0)
    assert_close(gradients(strategy, actual), gradients(strategy, expected))


@pytest.mark.parametrize("bn_mode", ["transductive", "support"])
@pytest.mark.parametrize("case", CASES)
def test_meta_gradient_of_the_multi_step_loss_equals_hand_unrolled_loop(case, bn_mode):
    algo, options = CASES[case]
    weights = [0.2, 0.3, 0.5]
    strategy, episodes = small_strategy(algo, bn_mode=bn_mode, **options), random_episodes()
    predict, adapted = per_task(algo, strategy, options, "stride", bn_mode)
    expected = unrolled_loss(predict, adapted, episodes, LR, STEPS, weights=weights)
    actual = meta_loss(strategy, episodes, inner_lr=LR, inner_steps=STEPS, step_weights=weights).loss
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=0)
    assert_close(gradients(strategy, actual), gradients(strategy, expected))


@pytest.mark.parametrize(
    ("algo", "weights", "message"),
    [
        ("km", [0.5, 0.5], "Expected 3 step_weights, one for each inner step, got 2"),
        ("reptile", [0.2, 0.3, 0.5], "Expected an outer loss with step_weights, got that of Reptile, which has none"),
        ("protonet", [0.2, 0.3, 0.5], "Expected inner steps for the query loss after each .*, got none by ProtoNet"),
    ],
)
def test_weights_of_steps_that_mean_nothing_are_refused(algo, weights, message):
    with pytest.raises(metakm.UserError, match=message):
        meta_loss(small_strategy(algo), random_episodes(), inner_lr=LR, inner_steps=STEPS, step_weights=weights)


@pytest.mark.parametrize("bn_mode", ["support", "running", "frozen"])
@pytest.mark.parametrize("case", CASES)
def test_meta_gradient_of_every_batch_norm_mode_equals_hand_unrolled_loop(case, bn_mode):
    """In meta-training, `running` normalises by the batch at hand."""
    algo, options = CASES[case]
    strategy, episodes = small_strategy(algo, bn_mode=bn_mode, **options), random_episodes()
    predict, adapted = per_task(algo, strategy, options, "stride", bn_mode)
    expected = unrolled_loss(predict, adapted, episodes, LR, STEPS)
    actual = meta_loss(strategy, episodes, inner_lr=LR, inner_steps=STEPS).loss
    assert_close(gradients(strategy, actual), gradients(strategy, expected))


@pytest.mark.parametrize("case", CASES)
def test_meta_gradient_equals_higher_one_task_at_a_time(case):
    algo, options = CASES[case]
    strategy, episodes = small_strategy(algo, **options), random_episodes()
    predict, adapted = per_task(algo, strategy, options, "stride")
    expected = higher_loss(predict, adapted, episodes, LR, STEPS)
    actual = meta_loss(strategy, episodes, inner_lr=LR, inner_steps=STEPS).loss
    assert_close(gradients(strategy, actual), gradients(strategy, expected))


@pytest.mark.parametrize("algo", metakm.available_strategies())
def test_batched_equals_one_task_at_a_time(algo):
    strategy, episodes = small_strategy(algo), random_episodes(tasks=3)
    batched = meta_loss(strategy, episodes, inner_lr=LR, inner_steps=STEPS)
    singles = [meta_loss(strategy, one_task(episodes, t), inner_lr=LR, inner_steps=STEPS) for t in range(3)]
    mean = torch.stack([s.loss for s in singles]).mean()
    assert_close(gradients(strategy, batched.loss), gradients(strategy, mean))
    assert torch.equal(batched.accuracy, torch.cat([s.accuracy for s in singles]))


def one_task(episodes, t):
    return type(episodes)(**{k: v[t : t + 1] for k, v in vars(episodes).items()})


@pytest.mark.parametrize("algo", strategies_with("first_order"))
def test_first_order_differs_and_every_outer_parameter_has_a_gradient(algo):
    strategy, episodes = small_strategy(algo), random_episodes()
    second = gradients(strategy, meta_loss(strategy, episodes, inner_lr=LR, inner_steps=STEPS).loss)
    meta_loss(strategy, episodes, inner_lr=LR, inner_steps=STEPS, first_order=True).loss.backward()
    learned = learned_parameters(strategy)
    assert all(p.grad is not None for p in learned.values())
    first = {name: p.grad for name, p in learned.items()}
    assert all(g.norm() > 0 for n, g in first.items() if not n.endswith("conv.bias") and "conv__bias" not in n)
    difference = sum((first[n] - second[n]).norm() for n in first)
    assert difference > 1e-3 * sum(g.norm() for g in second.values())


@pytest.mark.parametrize("algo", metakm.available_strategies())
def test_inner_loop_leaves_every_parameter_and_buffer_as_it_was(algo):
    strategy, episodes = small_strategy(algo), random_episodes()
    before = {k: v.clone() for k, v in strategy.state_dict().items()}
    meta_loss(strategy, episodes, inner_lr=LR, inner_steps=STEPS).loss.backward()
    evaluate_episodes(strategy, episodes, inner_lr=LR, inner_steps=STEPS)
    after = strategy.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def small_lr(algo):
    """A head of class means starts steep."""
    return LR / 20 if "proto" in algo or algo == "finetune" else LR


@pytest.mark.parametrize("algo", WITH_STEPS)
def test_adaptation_lowers_the_support_loss(algo):
    strategy, episodes = small_strategy(algo), random_episodes()
    same = type(episodes)(
        **{**vars(episodes), "query_images": episodes.support_images, "query_labels": episodes.support_labels}
    )
    losses = [evaluate_episodes(strategy, same, inner_lr=small_lr(algo), inner_steps=k).loss for k in (0, 3)]
    assert losses[1] < losses[0]


ADAPTS_IN_TRAINING = [a for a in metakm.available_strategies() if a not in ("reptile", *CLASS_TRAINING)]


@pytest.mark.parametrize("algo", ADAPTS_IN_TRAINING)  # to the support images
def test_evaluation_gives_the_same_logits_without_any_graph(algo):
    strategy, episodes = small_strategy(algo), random_episodes()
    trained = meta_loss(strategy, episodes, inner_lr=LR, inner_steps=STEPS)
    evaluated = evaluate_episodes(strategy, episodes, inner_lr=LR, inner_steps=STEPS)
    torch.testing.assert_close(evaluated.logits, trained.logits, rtol=1e-10, atol=1e-12)
    assert not evaluated.loss.requires_grad
    assert not evaluated.logits.requires_grad


def test_evaluation_asks_for_no_differentiable_gradient(monkeypatch):
    create_graph = []
    original = torch.autograd.grad

    def spy(*args, **kwargs):
        create_graph.append(kwargs.get("create_graph", False))
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", spy)
    strategy, episodes = small_strategy("km"), random_episodes()
    evaluate_episodes(strategy, episodes, inner_lr=LR, inner_steps=STEPS)
    assert create_graph == [False] * STEPS
    meta_loss(strategy, episodes, inner_lr=LR, inner_steps=1)
    assert create_graph[-1] is True


def test_anil_runs_its_backbone_once_for_support_and_once_for_query():
    strategy, episodes = small_strategy("anil"), random_episodes()
    calls = []
    strategy.backbone.register_forward_hook(lambda *_: calls.append(1))
    meta_loss(strategy, episodes, inner_lr=LR, inner_steps=5)
    assert len(calls) == 2


@pytest.mark.parametrize("algo", strategies_with("learn_inner_lr"))
def test_learnable_rates_equal_the_same_number_and_get_the_right_gradient(algo):
    strategy, episodes = small_strategy(algo), random_episodes()
    lr = small_lr(algo)
    rates = [torch.tensor(lr, requires_grad=True) for _ in strategy.adapted.parameters()]

    def loss(rate):
        return meta_loss(strategy, episodes, inner_lr=rate, inner_steps=STEPS).loss

    plain, learned = loss(lr), loss(rates)
    torch.testing.assert_close(learned, plain, rtol=1e-12, atol=0)
    analytic = sum(torch.autograd.grad(learned, rates, materialize_grads=True))
    numeric = (loss(lr + 1e-5) - loss(lr - 1e-5)) / 2e-5
    torch.testing.assert_close(analytic, numeric, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("first_order", [False, True], ids=["second-order", "first-order"])
@pytest.mark.parametrize("case", CASES)
def test_rates_of_each_step_equal_a_hand_unrolled_loop_and_the_last_is_that_of_further_steps(case, first_order):
    algo, options = CASES[case]
    strategy, episodes = small_strategy(algo, **options), random_episodes()
    predict, adapted = per_task(algo, strategy, options, "stride")
    own = list(strategy.adapted.parameters())
    rates = [(0.1 + 0.4 * torch.rand(STEPS - 1)).requires_grad_() for _ in own]
    by_name = {name: rates[next(i for i, q in enumerate(own) if q is p)] for name, p in adapted.items()}
    of_steps = [{name: rate[min(k, STEPS - 2)] for name, rate in by_name.items()} for k in range(STEPS)]
    expected = unrolled_loss(predict, adapted, episodes, of_steps, STEPS, first_order)
    actual = meta_loss(strategy, episodes, inner_lr=rates, inner_steps=STEPS, first_order=first_order).loss
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=0)
    of_rates = [
        dict(enumerate(torch.autograd.grad(loss, rates, retain_graph=True, materialize_grads=True)))
        for loss in (actual, expected)
    ]
    assert_close(*of_rates)
    assert_close(gradients(strategy, actual), gradients(strategy, expected))


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("ways", [3, 5])
@pytest.mark.parametrize("run", [meta_loss, evaluate_episodes])
@pytest.mark.parametrize("algo", WITH_A_HEAD)
def test_tasks_of_other_ways_than_the_strategys_are_refused(algo, run, ways, steps):
    with pytest.raises(metakm.UserError, match=f"tasks of 4 classes, the ways of the strategy, got tasks of {ways}; "):
        run(small_strategy(algo, ways=4), random_episodes(ways=ways), inner_lr=0.1, inner_steps=steps)


def test_inner_steps_may_go_without_some_classes_but_not_beyond_them():
    class Partial(strategy_class("anil")):
        def adapt(self, inner, encoded, labels):
            return inner.descend((encoded, labels.clamp(max=highest)))

    strategy, highest = Partial(metakm.Conv4(1, 3, "stride", image_size=14), 4), 2
    assert meta_loss(strategy, random_episodes(ways=4), inner_lr=0.1, inner_steps=1).loss.isfinite()


def test_wrong_number_of_rates_and_negative_steps_are_refused():
    strategy, episodes = small_strategy("anil"), random_episodes()
    with pytest.raises(metakm.UserError, match="Expected one inner learning rate, or 2"):
        meta_loss(strategy, episodes, inner_lr=[torch.tensor(0.1)], inner_steps=1)
    with pytest.raises(metakm.UserError, match="at least 0, got -1"):
        meta_loss(strategy, episodes, inner_lr=0.1, inner_steps=-1)
    for shape in ((2, 1), (0,)):
        with pytest.raises(metakm.UserError, match=rf"shape \[\] or \[steps\], got \[{', '.join(map(str, shape))}\]"):
            meta_loss(strategy, episodes, inner_lr=[torch.ones(shape), torch.ones(shape)], inner_steps=1)


def test_fast_weights_are_released_after_the_loss():
    """`higher`'s patched classes are reference cycles; they must not keep a step's graph alive."""
    import gc

    strategy, episodes = small_strategy("maml"), random_episodes()
    meta_loss(strategy, episodes, inner_lr=LR, inner_steps=2).loss.backward()
    gc.collect()
    gc.disable()
    try:
        before = count_tensors(gc)
        for _ in range(5):
            meta_loss(strategy, episodes, inner_lr=LR, inner_steps=2).loss.backward()
        assert count_tensors(gc) <= before + 5
    finally:
        gc.enable()


def count_tensors(gc):
    return sum(type(o) in (torch.Tensor, torch.nn.Parameter) for o in gc.get_objects())


@pytest.mark.float32
@pytest.mark.parametrize("case", CASES)
def test_bfloat16_images_give_nearly_the_same_meta_gradient_on_float32_parameters(case):
    algo, options = CASES[case]
    strategy, episodes = small_strategy(algo, filters=16, size=28, **options), random_episodes(size=28)
    exact = gradients(strategy, meta_loss(strategy, episodes, inner_lr=0.1, inner_steps=2).loss)
    episodes.support_images = episodes.support_images.bfloat16()
    episodes.query_images = episodes.query_images.bfloat16()
    rounded = meta_loss(strategy, episodes, inner_lr=0.1, inner_steps=2)
    approximate = gradients(strategy, rounded.loss)
    assert rounded.logits.dtype == torch.float32
    assert all(g.dtype == torch.float32 for g in approximate.values())
    a, b = (torch.cat([g.flatten() for g in grads.values()]) for grads in (exact, approximate))
    assert torch.cosine_similarity(a, b, dim=0) > 0.95
    assert (a - b).norm() > 1e-4 * a.norm(), "the convolutions did not run in bfloat16"


@pytest.mark.parametrize("algo", metakm.available_strategies())
@pytest.mark.parametrize("learned", [False, True])
def test_the_step_that_a_gpu_takes_is_that_of_higher(algo, learned, monkeypatch):
    """Its few launches compute what `higher`'s update does, the derivatives by the rates included."""
    if learned and algo not in strategies_with("learn_inner_lr"):
        pytest.skip("a strategy without learned rates")
    found = []
    for lean in (False, True):
        monkeypatch.setattr(fast_weights, "_fewest_launches", lambda _, lean=lean: lean)
        strategy = small_strategy(algo)
        adapted = list(strategy.adapted.parameters())
        rates = [torch.full((2,), LR, requires_grad=True) for _ in adapted] if learned else LR
        result = meta_loss(strategy, random_episodes(), inner_lr=rates, inner_steps=STEPS)
        wanted = [*strategy.parameters(), *(rates if learned else [])]
        found.append(torch.autograd.grad(result.loss, wanted, materialize_grads=True))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("algo", ["maml", "bn", "km", "boil", "imaml"])
def test_a_frozen_parameter_stays_in_training_and_in_evaluation_alike(algo):
    strategy, episodes = small_strategy(algo), random_episodes()
    frozen = next(strategy.adapted.parameters()).requires_grad_(False)
    inner = GradientDescent(strategy, LR, STEPS)
    adapted = inner.descend((strategy.encode(episodes.support_images), episodes.support_labels), graph=False)
    ends = [end.detach() for end in adapted.parameters()]
    assert torch.equal(ends[0], frozen.expand_as(ends[0]))
    starts = list(strategy.adapted.parameters())
    assert sum(not torch.equal(end, start.expand_as(end)) for end, start in zip(ends, starts, strict=True)) >= 2
    inner.release()
    if algo == "imaml":  # whose meta-gradient needs no graph
        return
    trained = meta_loss(strategy, episodes, inner_lr=LR, inner_steps=STEPS)
    tested = evaluate_episodes(strategy, episodes, inner_lr=LR, inner_steps=STEPS)
    torch.testing.assert_close(tested.logits, trained.logits, rtol=1e-10, atol=1e-10)

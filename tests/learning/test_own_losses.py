"""A strategy's own losses and metric, and schedules of the outer loss, against hand-unrolled loops in float64."""

import copy

import pytest
import torch
from loops import CPU, Sampler, config, learner_of, loop
from small import assert_close, gradients, random_episodes, small_strategy
from torch import nn

import metakm
from metakm.data import Episodes
from metakm.learning.evaluation import accuracies
from metakm.learning.inner_loop import evaluate_episodes, meta_loss
from metakm.learning.outer_loop import OuterLoop
from metakm.models.layers import Linear
from metakm.presets import preset_config
from metakm.strategies.anil import ANIL
from metakm.strategies.imaml import IMAML
from metakm.strategies.maml import MAML
from metakm.strategies.reptile import Reptile

LR, STEPS = 0.1, 3


class Regression(metakm.Strategy):
    """`adapted` = a perceptron; targets `[T, n, 2]`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.adapted = nn.Sequential(Linear(1, 5), nn.Tanh(), Linear(5, 2))

    def predict(self, adapted, encoded):
        return adapted(encoded)

    def inner_loss(self, logits, labels):
        return (logits - labels).square().mean((1, 2))

    def metric(self, logits, labels):
        return -self.inner_loss(logits, labels)


def curves(tasks=3, shots=4, queries=6, seed=0):
    """Inputs `[T, n, 1]` and targets `[T, n, 2]`."""
    generator = torch.Generator().manual_seed(seed)

    def half(n):
        x = torch.rand(tasks, n, 1, generator=generator)
        return x, torch.cat([x.sin(), x.square()], dim=-1) * torch.arange(1, tasks + 1)[:, None, None]

    return Episodes(*half(shots), *half(queries), range(tasks))


def unrolled(strategy, episodes, weights=None, first_order=False):
    """Losses of the queries after the last step, or after each step times its weight; by task, then their mean."""
    losses = []
    for t in range(len(episodes)):
        fast, after = list(strategy.adapted.parameters()), []

        def of(x, y, fast):
            return ((torch.tanh(x @ fast[0].T + fast[1]) @ fast[2].T + fast[3] - y) ** 2).mean()

        for _ in range(STEPS):
            loss = of(episodes.support_images[t], episodes.support_labels[t], fast)
            slopes = torch.autograd.grad(loss, fast, create_graph=True)
            fast = [p - LR * (g.detach() if first_order else g) for p, g in zip(fast, slopes, strict=True)]
            after.append(of(episodes.query_images[t], episodes.query_labels[t], fast))
        losses.append(sum(w * a for w, a in zip(weights, after, strict=True)) if weights else after[-1])
    return torch.stack(losses)


@pytest.mark.parametrize("weights", [None, [0.2, 0.3, 0.5]])
@pytest.mark.parametrize("first_order", [False, True])
def test_the_meta_gradient_of_a_regression_equals_a_hand_unrolled_loop(weights, first_order):
    strategy, episodes = Regression(), curves()
    expected = unrolled(strategy, episodes, weights, first_order).mean()
    found = meta_loss(strategy, episodes, inner_lr=LR, inner_steps=STEPS, first_order=first_order, step_weights=weights)
    torch.testing.assert_close(found.loss, expected, rtol=1e-10, atol=0)
    assert_close(gradients(strategy, found.loss), gradients(strategy, expected))


def test_a_metric_of_ones_own_is_what_training_and_evaluation_report():
    strategy, episodes = Regression(), curves()
    expected = -unrolled(strategy, episodes).detach()
    found = meta_loss(strategy, episodes, inner_lr=LR, inner_steps=STEPS)
    torch.testing.assert_close(found.accuracy, expected, rtol=1e-10, atol=0)
    tested = evaluate_episodes(strategy, episodes, inner_lr=LR, inner_steps=STEPS)
    torch.testing.assert_close(tested.accuracy, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(tested.loss, -expected.mean(), rtol=1e-10, atol=0)

    class Source:
        def batch(self, index, tasks):
            return episodes[index : index + tasks]

    options = {"tasks": 3, "inner_lr": LR, "inner_steps": STEPS, "device": CPU, "dtype": torch.float64}
    assert accuracies(strategy, Source(), chunk=2, **options) == pytest.approx(expected.numpy(), rel=1e-10)


def test_targets_without_a_loss_of_ones_own_are_refused():
    class Unfinished(Regression):
        inner_loss = metakm.Strategy.inner_loss

    with pytest.raises(metakm.UserError, match="let the strategy override inner_loss and metric"):
        meta_loss(Unfinished(), curves(), inner_lr=LR, inner_steps=1)


@pytest.mark.parametrize("name", ["inner_loss", "metric"])
def test_a_loss_or_a_metric_that_mixes_the_tasks_is_refused(name):
    mixed = type("Mixed", (Regression,), {name: lambda *_: torch.zeros((), requires_grad=True)})
    with pytest.raises(metakm.UserError, match=rf"Expected Mixed.{name} to return one value per task, \[3\], got \[\]"):
        meta_loss(mixed(), curves(), inner_lr=LR, inner_steps=1)


@pytest.mark.parametrize(
    ("result", "got"),
    [
        (lambda _: None, "NoneType"),
        (lambda given: given[0], r"\[\]"),
        (lambda given: (given[0], None), r"\[\] and NoneType"),
        (lambda given: (given[0].repeat(3), given[1]), r"\[3\] and \[3, 6, 2\]"),
        (lambda given: (given[0], given[1][:1]), r"\[\] and \[1, 6, 2\]"),
        (lambda _: (), "nothing"),
    ],
)
def test_an_outer_loss_that_returns_something_else_is_refused(result, got):
    def outer_loss(self, inner, episodes):
        return result(Regression.outer_loss(self, inner, episodes))

    odd = type("Odd", (Regression,), {"outer_loss": outer_loss})
    said = rf"Expected Odd.outer_loss to return a scalar loss and the logits \[3, n, N\], got {got}; return these two"
    with pytest.raises(metakm.UserError, match=said):
        meta_loss(odd(), curves(), inner_lr=LR, inner_steps=1)


class Halved:
    """Half the usual inner loss, so that twice the inner rate does the same."""

    def inner_loss(self, logits, labels):
        return super().inner_loss(logits, labels) / 2


@pytest.mark.parametrize("base", [MAML, ANIL, Reptile])
def test_the_loss_of_the_inner_steps_and_that_of_the_queries_are_the_strategys(base):
    halved = type("Half", (Halved, base), {})
    strategies = []
    for cls in (base, halved):
        torch.manual_seed(0)
        strategies.append(cls(metakm.Conv4(1, 3, "stride", image_size=14), 4))
    episodes = random_episodes()
    usual = meta_loss(strategies[0], episodes, inner_lr=LR, inner_steps=2)
    own = meta_loss(strategies[1], episodes, inner_lr=2 * LR, inner_steps=2)
    torch.testing.assert_close(own.logits, usual.logits, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(own.loss, usual.loss / 2, rtol=1e-10, atol=0)
    expected = {name: g / 2 for name, g in gradients(strategies[0], usual.loss).items()}
    assert_close(gradients(strategies[1], own.loss), expected)


def test_imaml_uses_the_strategys_loss():
    half = type("Half", (Halved, IMAML), {})
    losses = []
    for cls in (IMAML, half):
        torch.manual_seed(0)
        strategy = cls(metakm.Conv4(1, 3, "stride", image_size=14), 4)
        losses.append(meta_loss(strategy, random_episodes(), inner_lr=1e-9, inner_steps=1).loss)
    torch.testing.assert_close(losses[1], losses[0] / 2, rtol=1e-6, atol=0)


class Fading(ANIL):
    """An outer loss of its own: the first step's query loss fades out, the last one's fades in."""

    uses_progress = True

    def outer_loss(self, inner, episodes):
        first, *_, last = self.query_results(inner, episodes, every_step=True)
        return ((1 - inner.progress) * first.losses + inner.progress * last.losses).mean(), last.logits


def fading(**changes):
    found = config(inner_steps=3, **changes)
    torch.manual_seed(0)
    learner = learner_of(Fading(metakm.Conv4(1, 3, "stride", image_size=14), 4), found)
    return OuterLoop(learner, Sampler(), found, CPU)


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_an_outer_loss_gets_the_result_of_each_step_and_the_progress(progress):
    torch.manual_seed(0)
    strategy, episodes = Fading(metakm.Conv4(1, 3, "stride", image_size=14), 4), random_episodes()
    own = meta_loss(strategy, episodes, inner_lr=LR, inner_steps=3, progress=progress)
    usual = ANIL(strategy.backbone, 4)
    usual.adapted = strategy.adapted
    weights = [1 - progress, 0.0, progress]
    expected = meta_loss(usual, episodes, inner_lr=LR, inner_steps=3, step_weights=weights)
    torch.testing.assert_close(own.loss, expected.loss, rtol=1e-10, atol=0)
    assert_close(gradients(strategy, own.loss), gradients(usual, expected.loss))


def test_the_progress_is_that_of_an_unbroken_run_after_a_resume():
    whole, first, second = (fading(iterations=4) for _ in range(3))
    expected = [whole.step() for _ in range(4)]
    assert [first.step() for _ in range(3)] == expected[:3]
    second.load_state(first.state())
    assert second.progress == 0.75
    assert second.step() == expected[3]
    assert fading(iterations=8).step() == expected[0]
    assert fading(iterations=8).progress == 0


def test_progress_that_nobody_declared_or_gave_is_refused():
    torch.manual_seed(0)
    strategy = Fading(metakm.Conv4(1, 3, "stride", image_size=14), 4)
    with pytest.raises(metakm.UserError, match="progress of training, which Fading uses, got none; pass progress="):
        meta_loss(strategy, random_episodes(), inner_lr=LR, inner_steps=3)
    strategy.uses_progress = False
    with pytest.raises(metakm.UserError, match="set uses_progress = True"):
        meta_loss(strategy, random_episodes(), inner_lr=LR, inner_steps=3, progress=0.5)


def test_an_adapt_that_follows_the_progress_is_evaluated_at_its_end():
    seen = []

    class Curious(ANIL):
        uses_progress = True

        def adapt(self, inner, encoded, labels):
            seen.append(inner.progress)
            return super().adapt(inner, encoded, labels)

    strategy = Curious(metakm.Conv4(1, 3, "stride", image_size=14), 4)
    evaluate_episodes(strategy, random_episodes(), inner_lr=LR, inner_steps=1)
    meta_loss(strategy, random_episodes(), inner_lr=LR, inner_steps=1, progress=0.5)
    assert seen == [1.0, 0.5]


@pytest.mark.parametrize("algo", ["maml", "km"])
def test_gradients_are_first_order_first_and_second_order_from_the_fraction_on(algo):
    annealed = loop(algo, second_order_from=0.5, iterations=4)
    for iteration in range(4):
        alike = loop(algo, first_order=iteration < 2, iterations=4)
        other = loop(algo, first_order=iteration >= 2, iterations=4)
        for each in (alike, other):
            each.load_state(copy.deepcopy(annealed.state()))
            each.step()
        annealed.step()
        parameters = [list(each.learner.strategy.parameters()) for each in (annealed, alike, other)]
        assert all(torch.equal(a, b) for a, b in zip(*parameters[:2], strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(parameters[0], parameters[2], strict=True))


def test_a_loop_resumed_at_the_fraction_goes_on_as_if_never_stopped():
    options = {"second_order_from": 0.5, "iterations": 4, "multi_step_loss": 3}
    unbroken, first, second = (loop("km", **options) for _ in range(3))
    expected = [unbroken.step() for _ in range(4)]
    assert [first.step() for _ in range(2)] == expected[:2]
    second.load_state(first.state())
    assert [second.step() for _ in range(2)] == expected[2:]


def test_a_recorded_gradient_is_forgotten_where_second_order_begins():
    annealed = loop("anil", second_order_from=0.5, iterations=4)
    cleared = []
    annealed._graphs = type(
        "Graphs", (), {"run": lambda _, f, e: f(e), "clear": lambda _: cleared.append(annealed.iteration)}
    )()
    for _ in range(4):
        annealed.step()
    assert cleared == [2]


def test_a_learner_with_second_order_from_needs_the_progress():
    learner = learner_of(small_strategy("anil"), config(second_order_from=0.5))
    with pytest.raises(metakm.UserError, match="pass progress="):
        learner.meta_loss(random_episodes())
    first, second = (learner.meta_loss(random_episodes(), progress=at).loss for at in (0.4, 0.5))
    assert first.item() == second.item()
    assert not torch.equal(*(gradients(learner.strategy, loss)["adapted.weight"] for loss in (first, second)))


@pytest.mark.parametrize("name", ["multi_step_loss", "second_order_from"])
@pytest.mark.parametrize("algo", ["protonet", "r2d2", "reptile", "imaml"])
def test_strategies_that_a_schedule_would_not_change_refuse_it(algo, name):
    with pytest.raises(metakm.UserError, match=f"--{name.replace('_', '-')} has no effect with '{algo}'"):
        preset_config(algo=algo, **{name: 0.5 if name == "second_order_from" else 3})


def test_a_schedule_out_of_range_is_refused():
    for value in (-0.1, 1.0, float("nan")):
        with pytest.raises(metakm.UserError, match="--second-order-from"):
            preset_config(algo="maml", second_order_from=value)
    with pytest.raises(metakm.UserError, match="Expected --first-order or --second-order-from, got both"):
        preset_config(algo="maml", second_order_from=0.5, first_order=True)


def test_only_a_run_with_the_schedule_names_it():
    plain, given = preset_config(algo="maml"), preset_config(algo="maml", second_order_from=0.5)
    assert "second_order_from" not in plain.identity()
    assert "second_order_from" not in plain.to_json()
    assert given.identity()["second_order_from"] == 0.5
    assert type(given).from_json(given.to_json()) == given
    assert type(plain).from_json(plain.to_json()) == plain
    assert "-second-order-from-" in given.run_id
    earlier = {"iterations": plain.val_every}
    assert plain.replaced(schedule="constant").may_change(earlier) == {"iterations"}
    assert given.replaced(schedule="constant").may_change(earlier) == frozenset(), "the switch would have moved"
    ended = {"iterations": plain.val_every + 1}
    assert plain.replaced(schedule="constant").may_change(ended) == frozenset(), "a longer run would not validate there"

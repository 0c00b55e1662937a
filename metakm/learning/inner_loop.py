"""The differentiable inner loop, batched over tasks. The one module that imports `higher`.

`higher` patches `strategy.adapted` alone, because its optimiser differentiates every patched parameter; each patched
parameter then gets a leading task axis, and one step on the sum of the tasks' support losses moves every task by its
own gradient (tasks are independent, so their gradients do not mix)::

    phi'_t = phi_t - alpha * grad L_support,t(phi_t)

Memory of a second-order loss grows with tasks x steps: the graph of every step is kept until `backward()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import higher
import torch
from torch import Tensor, nn

from metakm.errors import UserError, unknown_name
from metakm.ops.sgd_step import SGDStep
from metakm.strategies.base import EpisodeBatch, Gradients, InnerLR, Strategy, Transform, cross_entropy, require_ways
from metakm.strategies.independence import require_independent_tasks

__all__ = ["EpisodeBatch", "GradientDescent", "InnerLR", "MetaLoss", "evaluate_episodes", "meta_loss"]


class MetaLoss(NamedTuple):
    """Outcome of one batch of episodes."""

    loss: Tensor  # scalar: the strategy's outer loss, as a rule the mean over tasks of the mean query cross-entropy
    accuracy: Tensor  # [T], fraction of queries that are right
    logits: Tensor  # [T, N*Q, N]


def meta_loss(
    strategy: Strategy,
    episodes: EpisodeBatch,
    *,
    inner_lr: InnerLR,
    inner_steps: int,
    first_order: bool = False,
    step_weights: Sequence[float] | None = None,
) -> MetaLoss:
    """Adapt to each task's support set and return the outer loss, ready for `backward()`.

    The gradient reaches every parameter of the strategy, through the whole inner loop (Finn et al. 2017, Eq. 1); with
    `first_order` the inner gradients are constants (their Sec. 5.2). A parameter that no prediction depends on keeps
    `grad=None`.

    Args:
        inner_lr: alpha on the mean support cross-entropy: one number, or one tensor for each parameter of
            `strategy.adapted` in its order (learnable rates): `[]`, or `[n]` for a rate of its own in each of the first
            n steps, the last of which is also that of all further steps.
        inner_steps: 0 predicts with the unadapted parameters.
        step_weights: one for each inner step: the outer loss is the sum of the query losses after each step with these
            weights (MAML++: Antoniou, Edwards & Storkey 2019, Sec. 4, "Multi-Step Loss Optimization"). None: the query
            loss after the last step.

    Raises:
        UserError: negative steps, rates or weights of the wrong number, weights for a strategy that has an outer loss
            of its own or no inner steps, tasks of other ways than the strategy's, or layers that mix the tasks.
    """
    inner = GradientDescent(strategy, inner_lr, inner_steps, first_order, graph=True)
    inner.step_weights = _checked_weights(step_weights, strategy, inner_steps)
    loss, logits = strategy.outer_loss(inner, episodes)
    require_ways(logits, episodes.support_labels)
    inner.release()
    return MetaLoss(loss, _accuracy(logits, episodes.query_labels), logits.detach())


@torch.inference_mode(False)
@torch.no_grad()
def evaluate_episodes(strategy: Strategy, episodes: EpisodeBatch, *, inner_lr: InnerLR, inner_steps: int) -> MetaLoss:
    """Query loss and accuracy after adaptation, without any graph across steps: nothing in it requires a gradient.

    Memory does not grow with the number of steps. Works within `torch.inference_mode`, too.

    Raises:
        UserError: see `meta_loss`.
    """
    episodes = _outside_inference(episodes)
    inner = GradientDescent(strategy, inner_lr, inner_steps)
    adapted = strategy.adapt(inner, strategy.encode(episodes.support_images), episodes.support_labels)
    logits = strategy.query_logits(adapted, episodes.support_images, episodes.query_images)
    inner.release()
    require_ways(logits, episodes.support_labels)
    loss = cross_entropy(logits, episodes.query_labels).mean()
    return MetaLoss(loss, _accuracy(logits, episodes.query_labels), logits)


class _Episodes(NamedTuple):
    support_images: Tensor
    support_labels: Tensor
    query_images: Tensor
    query_labels: Tensor


def _outside_inference(episodes: EpisodeBatch) -> EpisodeBatch:
    """Copies of inference tensors: the inner loop needs gradients."""
    tensors = [getattr(episodes, name) for name in _Episodes._fields]
    if not any(tensor.is_inference() for tensor in tensors):
        return episodes
    return _Episodes(*(tensor.clone() for tensor in tensors))


class GradientDescent:
    """The inner loop of one batch of tasks.

    Args:
        inner_lr, steps, first_order: see `meta_loss`.
        graph: keep what a meta-gradient needs.
    """

    def __init__(
        self, strategy: Strategy, inner_lr: InnerLR, steps: int, first_order: bool = False, graph: bool = False
    ) -> None:
        if steps < 0:
            raise UserError(f"Expected inner_steps to be at least 0, got {steps}")
        require_independent_tasks(strategy)
        self.strategy, self.steps, self.first_order, self.graph = strategy, steps, first_order, graph
        self.rates = _one_each(inner_lr, len(list(strategy.adapted.parameters())))
        self.step_weights: Sequence[float] | None = None
        self._after_step: Callable[[int, nn.Module], None] | None = None
        self._patched: list[nn.Module] = []

    def after_each_step(self, call: Callable[[int, nn.Module], None]) -> None:
        """See `metakm.strategies.base.InnerLoop`."""
        self._after_step = call

    @torch.enable_grad()
    def descend(
        self,
        *batches: tuple[Tensor, Tensor],
        factors: Iterable[Tensor] | None = None,
        start: Mapping[str, Tensor] | None = None,
        transform: Transform | None = None,
        graph: bool = True,
    ) -> nn.Module:
        """See `metakm.strategies.base.InnerLoop`."""
        if not self.rates:
            raise UserError("Expected a strategy whose `adapted` has parameters, got none; let it override `adapt`")
        graph = graph and self.graph
        factors = None if factors is None else list(factors)
        adapted = higher.monkeypatch(self.strategy.adapted, copy_initial_weights=False, track_higher_grads=graph)
        self._patched.append(adapted)
        tasks = batches[0][1].shape[0]
        adapted.update_params(_starts(self.strategy.adapted, tasks, start or {}, graph))
        optimiser = _optimiser(self.strategy.adapted, adapted, graph)
        # `higher`'s own track_higher_grads=False would cut the initial parameters off; constant gradients do not.
        direction = partial(_direction, adapted, transform, self.first_order and graph)
        by_step = [_by_step(rate) for rate in self.rates]
        for step in range(self.steps):
            encoded, labels = batches[step % len(batches)]
            logits = self.strategy.predict(adapted, encoded)
            if step == 0:
                require_ways(logits, labels, or_fewer=True)
            losses = cross_entropy(logits, labels)  # [T]
            rates = [each[min(step, len(each) - 1)] for each in by_step]
            rates = rates if factors is None else [r * f for r, f in zip(rates, factors, strict=True)]
            optimiser.step(losses.sum(), override={"lr": rates}, grad_callback=direction)
            if self._after_step is not None:
                self._after_step(step, adapted)
        return adapted  # type: ignore[no-any-return]

    def release(self) -> None:
        """Drop `higher`'s references to the fast weights: its patched classes are cycles only the collector frees."""
        for adapted in self._patched:
            for module in adapted.modules():
                module._fast_params = None  # type: ignore[assignment]
                for name in module._parameters:
                    module._parameters[name] = None
        self._patched.clear()


def _one_each(inner_lr: InnerLR, count: int) -> list[float | Tensor]:
    """A rate for each of `count` adapted parameters."""
    if isinstance(inner_lr, int | float):
        return [inner_lr] * count
    if len(inner_lr) != count:
        raise UserError(
            f"Expected one inner learning rate, or {count}, one for each adapted parameter; got {len(inner_lr)}"
        )
    for rate in inner_lr:
        if rate.dim() > 1 or rate.numel() == 0:
            raise UserError(f"Expected inner learning rates of shape [] or [steps], got {list(rate.shape)}")
    return list(inner_lr)


def _checked_weights(weights: Sequence[float] | None, strategy: Strategy, steps: int) -> Sequence[float] | None:
    if weights is None:
        return None
    if len(weights) != steps:
        raise UserError(f"Expected {steps} step_weights, one for each inner step, got {len(weights)}")
    if type(strategy).outer_loss is not Strategy.outer_loss:
        raise UserError(
            f"Expected a strategy with the usual outer loss for step_weights, got {type(strategy).__qualname__}, which "
            "has its own; leave them out"
        )
    return weights


def _by_step(rate: float | Tensor) -> Sequence[float | Tensor]:
    """The rates of the first steps; the last is also that of all further ones."""
    return rate.unbind() if isinstance(rate, Tensor) and rate.dim() else (rate,)


def _starts(module: nn.Module, tasks: int, given: Mapping[str, Tensor], graph: bool) -> list[Tensor]:
    """Where each parameter of `module` starts in each task, `[T, ...]`."""
    own = dict(module.named_parameters())
    if unknown := [name for name in given if name not in own]:
        raise unknown_name("start of an adapted parameter", unknown[0], own)
    starts = {name: given.get(name, p.expand(tasks, *p.shape)) for name, p in own.items()}
    return [s if graph else s.detach().requires_grad_(own[name].requires_grad) for name, s in starts.items()]


def _optimiser(module: nn.Module, adapted: nn.Module, graph: bool) -> higher.optim.DifferentiableOptimizer:
    parameters = list(module.parameters())
    plain = torch.optim.SGD([{"params": [p]} for p in parameters], lr=0.0)
    kind = _LeanSGD if _fewest_launches(parameters[0]) else higher.optim.DifferentiableSGD
    return kind(plain, parameters, fmodel=adapted, track_higher_grads=graph)


def _fewest_launches(parameter: Tensor) -> bool:
    """Whether launching an operation costs more than computing it."""
    return parameter.is_cuda


class _LeanSGD(higher.optim.DifferentiableSGD):  # type: ignore[misc]
    """`higher`'s SGD without momentum or decay, in fewer launches."""

    def _update(self, grouped_grads: list[list[Tensor | None]], **_: object) -> None:
        for group, (gradient,) in zip(self.param_groups, grouped_grads, strict=True):
            if gradient is not None:
                (parameter,), rate = group["params"], group["lr"]
                fixed = not isinstance(rate, Tensor)
                group["params"] = [
                    torch.add(parameter, gradient, alpha=-rate) if fixed else SGDStep.apply(parameter, gradient, rate)
                ]


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(dim=-1) == labels).to(torch.float64).mean(dim=1)


def _direction(adapted: nn.Module, transform: Transform | None, constant: bool, gradients: Gradients) -> Gradients:
    gradients = [g if g is None or not constant else g.detach() for g in gradients]
    return gradients if transform is None else transform(adapted, gradients)

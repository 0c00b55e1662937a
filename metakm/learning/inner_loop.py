"""The differentiable inner loop, batched over tasks.

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

import torch
from torch import Tensor, nn

from metakm.errors import UserError, unknown_name
from metakm.learning.fast_weights import inner_optimiser, release, with_fast_weights
from metakm.learning.inner_rates import one_rate_each, rates_by_step
from metakm.strategies.base import Strategy
from metakm.strategies.independence import require_independent_tasks
from metakm.strategies.interfaces import EpisodeBatch, Gradients, InnerLR, Transform
from metakm.strategies.losses import one_per_task, require_ways, scalar_and_logits


class MetaLoss(NamedTuple):
    """Outcome of one batch of episodes.

    Attributes:
        loss: scalar: the strategy's outer loss, by default the mean over tasks of the query loss.
        accuracy: float64 `[T]`: the strategy's metric, by default the fraction of queries that are right.
        logits: `[T, N*Q, N]`.
    """

    loss: Tensor
    accuracy: Tensor
    logits: Tensor


def meta_loss(
    strategy: Strategy,
    episodes: EpisodeBatch,
    *,
    inner_lr: InnerLR,
    inner_steps: int,
    first_order: bool = False,
    step_weights: Sequence[float] | None = None,
    progress: float | None = None,
) -> MetaLoss:
    """Adapt to each task's support set and return the outer loss, ready for `backward()`.

    The gradient reaches every parameter of the strategy, through the whole inner loop (Finn et al. 2017, Eq. 1); with
    `first_order` the inner gradients are constants (their Sec. 5.2). A parameter that no prediction depends on keeps
    `grad=None`.

    Args:
        inner_lr: alpha on the support loss, by default the mean cross-entropy: one number, or a number or a tensor for
            each parameter of `strategy.adapted` in its order (learnable rates): `[]`, or `[n]` for a rate of its own
            in each of the first n steps, the last of which is also that of all further steps.
        inner_steps: 0 predicts with the unadapted parameters.
        step_weights: one for each inner step: the outer loss is the sum of the query losses after each step with these
            weights (MAML++: Antoniou, Edwards & Storkey 2019, Sec. 4, "Multi-Step Loss Optimization"). None: the query
            loss after the last step.
        progress: the part of meta-training that is done, 0 to 1, for a strategy that uses it.

    Raises:
        UserError: negative steps, rates or weights of the wrong number, weights for a strategy that has an outer loss
            without them or no inner steps, tasks of other ways than the strategy's, or layers that mix the tasks.
    """
    _check_weights(step_weights, inner_steps)
    inner = GradientDescent(strategy, inner_lr, inner_steps, first_order, True, step_weights, progress)
    result = strategy.outer_loss(inner, episodes)
    owner = f"{type(strategy).__qualname__}.outer_loss"
    loss, logits = scalar_and_logits(result, len(episodes.query_labels), owner)
    inner.require_weights_used()
    require_ways(logits, episodes.support_labels)
    inner.release()
    return MetaLoss(loss, _metric(strategy, logits, episodes.query_labels), logits.detach())


@torch.inference_mode(False)
@torch.no_grad()
def evaluate_episodes(strategy: Strategy, episodes: EpisodeBatch, *, inner_lr: InnerLR, inner_steps: int) -> MetaLoss:
    """Query loss and accuracy after adaptation, without any graph across steps: nothing in it requires a gradient.

    Memory does not grow with the number of steps. Works within `torch.inference_mode`, too.

    Raises:
        UserError: see `meta_loss`.
    """
    episodes = _outside_inference(episodes)
    inner = GradientDescent(strategy, inner_lr, inner_steps, progress=1.0)
    adapted = strategy.adapt(inner, strategy.encode(episodes.support_images), episodes.support_labels)
    logits = strategy.query_logits(adapted, episodes.support_images, episodes.query_images)
    inner.release()
    require_ways(logits, episodes.support_labels)
    loss = strategy.inner_loss(logits, episodes.query_labels).mean()
    return MetaLoss(loss, _metric(strategy, logits, episodes.query_labels), logits)


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
        inner_lr, steps, first_order, step_weights, progress: see `meta_loss`.
        graph: keep what a meta-gradient needs.
    """

    def __init__(
        self,
        strategy: Strategy,
        inner_lr: InnerLR,
        steps: int,
        first_order: bool = False,
        graph: bool = False,
        step_weights: Sequence[float] | None = None,
        progress: float | None = None,
    ) -> None:
        if steps < 0:
            raise UserError(f"Expected inner_steps to be at least 0, got {steps}")
        require_independent_tasks(strategy)
        self.strategy, self.steps, self.first_order, self.graph = strategy, steps, first_order, graph
        self.rates = one_rate_each(inner_lr, len(list(strategy.adapted.parameters())))
        self._step_weights, self._progress = step_weights, progress
        self._weights_used = False
        self._after_step: Callable[[int, nn.Module], None] | None = None
        self._patched: list[nn.Module] = []

    @property
    def step_weights(self) -> Sequence[float] | None:
        """See `metakm.strategies.base.InnerLoop`."""
        self._weights_used = True
        return self._step_weights

    @property
    def progress(self) -> float:
        """See `metakm.strategies.base.InnerLoop`."""
        name = type(self.strategy).__qualname__
        if not self.strategy.uses_progress:
            raise UserError(f"Expected {name} to say that it uses the progress, got none; set uses_progress = True")
        if self._progress is None:
            raise UserError(f"Expected the progress of training, which {name} uses, got none; pass progress=")
        return self._progress

    def require_weights_used(self) -> None:
        """Refuse weights that the outer loss did not ask for. Raises UserError."""
        if self._step_weights is not None and not self._weights_used:
            raise UserError(
                f"Expected an outer loss with step_weights, got that of {type(self.strategy).__qualname__}, which has "
                "none; leave them out"
            )

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
        tasks = batches[0][1].shape[0]
        starts = _starts(self.strategy.adapted, tasks, start or {}, graph)
        adapted = with_fast_weights(self.strategy.adapted, starts, graph)
        self._patched.append(adapted)
        optimiser = inner_optimiser(self.strategy.adapted, adapted, graph)
        # `higher`'s own track_higher_grads=False would cut the initial parameters off; constant gradients do not.
        moves = [start.requires_grad for start in starts]
        direction = partial(_direction, adapted, transform, moves, self.first_order and graph)
        by_step = [rates_by_step(rate) for rate in self.rates]
        for step in range(self.steps):
            encoded, labels = batches[step % len(batches)]
            logits = self.strategy.predict(adapted, encoded)
            if step == 0:
                require_ways(logits, labels, or_fewer=True)
            losses = one_per_task(self.strategy.inner_loss(logits, labels), tasks, self._loss_name)  # [T]
            rates = [each[min(step, len(each) - 1)] for each in by_step]
            rates = rates if factors is None else [r * f for r, f in zip(rates, factors, strict=True)]
            optimiser.step(losses.sum(), override={"lr": rates}, grad_callback=direction)
            if self._after_step is not None:
                self._after_step(step, adapted)
        return adapted

    @property
    def _loss_name(self) -> str:
        return f"{type(self.strategy).__qualname__}.inner_loss"

    def release(self) -> None:
        """Drop the fast weights of every descent."""
        for adapted in self._patched:
            release(adapted)
        self._patched.clear()


def _check_weights(weights: Sequence[float] | None, steps: int) -> None:
    if weights is not None and len(weights) != steps:
        raise UserError(f"Expected {steps} step_weights, one for each inner step, got {len(weights)}")


def _starts(module: nn.Module, tasks: int, given: Mapping[str, Tensor], graph: bool) -> list[Tensor]:
    """Where each parameter of `module` starts in each task, `[T, ...]`."""
    own = dict(module.named_parameters())
    if unknown := [name for name in given if name not in own]:
        raise unknown_name("start of an adapted parameter", unknown[0], own)
    starts = {name: given.get(name, p.expand(tasks, *p.shape)) for name, p in own.items()}
    frozen = not any(p.requires_grad for p in own.values())  # such as a learner that is deployed
    return [s if graph else s.detach().requires_grad_(frozen or own[name].requires_grad) for name, s in starts.items()]


def _metric(strategy: Strategy, logits: Tensor, labels: Tensor) -> Tensor:
    found = strategy.metric(logits.detach(), labels)
    return one_per_task(found, len(labels), f"{type(strategy).__qualname__}.metric").detach().to(torch.float64)


def _direction(
    adapted: nn.Module, transform: Transform | None, moves: Sequence[bool], constant: bool, gradients: Gradients
) -> Gradients:
    """The gradients of a step; None for a frozen parameter, which `higher` lets take gradients after the first."""
    gradients = [g if moved else None for g, moved in zip(gradients, moves, strict=True)]
    gradients = [g if g is None or not constant else g.detach() for g in gradients]
    return gradients if transform is None else transform(adapted, gradients)

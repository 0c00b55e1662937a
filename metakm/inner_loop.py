"""The differentiable inner loop, batched over tasks. The one module that imports `higher`.

`higher` patches `strategy.adapted` alone, because its optimiser differentiates every patched parameter; each patched
parameter then gets a leading task axis, and one step on the sum of the tasks' support losses moves every task by its
own gradient (tasks are independent, so their gradients do not mix)::

    phi'_t = phi_t - alpha * grad L_support,t(phi_t)

Memory of a second-order loss grows with tasks x steps: the graph of every step is kept until `backward()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import higher
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metakm.errors import UserError
from metakm.models.layers import statistics_from
from metakm.strategies.base import Strategy

InnerLR = float | Sequence[Tensor]


class EpisodeBatch(Protocol):
    """T episodes; see `metakm.data.Episodes`."""

    @property
    def support_images(self) -> Tensor:
        """`[T, N*K, C, H, W]`."""

    @property
    def support_labels(self) -> Tensor:
        """`[T, N*K]`, in 0..N-1."""

    @property
    def query_images(self) -> Tensor:
        """`[T, N*Q, C, H, W]`."""

    @property
    def query_labels(self) -> Tensor:
        """`[T, N*Q]`, in 0..N-1."""


class MetaLoss(NamedTuple):
    """Outcome of one batch of episodes."""

    loss: Tensor  # scalar: mean over tasks of the mean query cross-entropy
    accuracy: Tensor  # [T], fraction of queries that are right
    logits: Tensor  # [T, N*Q, N]


def meta_loss(
    strategy: Strategy,
    episodes: EpisodeBatch,
    *,
    inner_lr: InnerLR,
    inner_steps: int,
    first_order: bool = False,
) -> MetaLoss:
    """Adapt to each task's support set and return the query loss, ready for `backward()`.

    The gradient reaches every parameter of the strategy, through the whole inner loop (Finn et al. 2017, Eq. 1); with
    `first_order` the inner gradients are constants (their Sec. 5.2). A parameter that no prediction depends on keeps
    `grad=None`.

    Args:
        inner_lr: alpha on the mean support cross-entropy: one number, or one tensor for each parameter of
            `strategy.adapted` in its order (learnable rates).
        inner_steps: 0 predicts with the unadapted parameters.

    Raises:
        UserError: negative steps, or as many rates as do not match the adapted parameters.
    """
    encoded = strategy.encode(episodes.support_images)
    adapted = _adapt(strategy, encoded, episodes.support_labels, inner_lr, inner_steps, first_order, graph=True)
    logits = _query_logits(strategy, adapted, episodes)
    losses = _cross_entropy(logits, episodes.query_labels)  # [T]
    result = MetaLoss(losses.mean(), _accuracy(logits, episodes.query_labels), logits.detach())
    _release(adapted)
    return result


def evaluate_episodes(strategy: Strategy, episodes: EpisodeBatch, *, inner_lr: InnerLR, inner_steps: int) -> MetaLoss:
    """Like `meta_loss` without any graph across steps: nothing in the result requires a gradient.

    Memory does not grow with the number of steps.
    """
    with torch.no_grad():
        encoded = strategy.encode(episodes.support_images)
    with torch.enable_grad():
        adapted = _adapt(strategy, encoded, episodes.support_labels, inner_lr, inner_steps, True, graph=False)
    with torch.no_grad():
        logits = _query_logits(strategy, adapted, episodes)
        losses = _cross_entropy(logits, episodes.query_labels)
    _release(adapted)
    return MetaLoss(losses.mean(), _accuracy(logits, episodes.query_labels), logits)


def _adapt(
    strategy: Strategy,
    encoded: Tensor,
    labels: Tensor,
    inner_lr: InnerLR,
    steps: int,
    first_order: bool,
    graph: bool,
) -> nn.Module:
    """`strategy.adapted` after `steps` steps, each parameter `[T, ...]`."""
    if steps < 0:
        raise UserError(f"Expected inner_steps to be at least 0, got {steps}")
    adapted = higher.monkeypatch(strategy.adapted, copy_initial_weights=False, track_higher_grads=graph)
    tasks = labels.shape[0]
    adapted.update_params([_per_task(p, tasks, graph) for p in adapted.parameters()])
    optimiser = _optimiser(strategy.adapted, adapted, inner_lr, graph)
    # `higher`'s own track_higher_grads=False would cut the initial parameters off; constant gradients do not.
    constant = _detach_all if first_order and graph else None
    for _ in range(steps):
        losses = _cross_entropy(strategy.predict(adapted, encoded), labels)  # [T]
        optimiser.step(losses.sum(), grad_callback=constant)
    return adapted  # type: ignore[no-any-return]


def _per_task(parameter: Tensor, tasks: int, graph: bool) -> Tensor:
    expanded = parameter.expand(tasks, *parameter.shape)
    return expanded if graph else expanded.detach().requires_grad_(parameter.requires_grad)


def _optimiser(
    module: nn.Module, adapted: nn.Module, inner_lr: InnerLR, graph: bool
) -> higher.optim.DifferentiableOptimizer:
    parameters = list(module.parameters())
    groups: list[dict[str, Any]]
    override: dict[str, list[Any]]
    if isinstance(inner_lr, int | float):
        groups, override = [{"params": parameters}], {"lr": [inner_lr]}
    else:
        if len(inner_lr) != len(parameters):
            raise UserError(
                f"Expected one inner learning rate, or {len(parameters)}, one for each adapted parameter; got "
                f"{len(inner_lr)}"
            )
        groups, override = [{"params": [p]} for p in parameters], {"lr": list(inner_lr)}
    plain = torch.optim.SGD(groups, lr=0.0)
    return higher.optim.DifferentiableSGD(
        plain, parameters, fmodel=adapted, override=override, track_higher_grads=graph
    )


def _query_logits(strategy: Strategy, adapted: nn.Module, episodes: EpisodeBatch) -> Tensor:
    if "support" not in strategy.bn_modes:
        return strategy.predict(adapted, strategy.encode(episodes.query_images))  # [T, N*Q, N]
    reference = episodes.support_images.shape[1]
    images = torch.cat([episodes.support_images, episodes.query_images], dim=1)  # [T, N*K + N*Q, C, H, W]
    with statistics_from(reference):
        return strategy.predict(adapted, strategy.encode(images))[:, reference:]


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each task, `[T]`, from logits `[T, n, N]` and labels `[T, n]`."""
    return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(dim=1)


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(dim=-1) == labels).to(torch.float64).mean(dim=1)


def _detach_all(gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if g is None else g.detach() for g in gradients]


def _release(adapted: nn.Module) -> None:
    """Drop `higher`'s references to the fast weights: its patched classes are cycles that only the collector frees."""
    for module in adapted.modules():
        module._fast_params = None  # type: ignore[assignment]
        for name in module._parameters:
            module._parameters[name] = None

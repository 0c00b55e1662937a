"""Losses of a batch of tasks, and checks of what goes into them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from metakm.errors import UserError


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each task, `[T]`, from logits `[T, n, N]` and labels `[T, n]`.

    Raises:
        UserError: labels that are no class numbers.
    """
    if labels.is_floating_point():
        raise UserError(
            "Expected class numbers for the cross-entropy, got targets of floating point; let the strategy override "
            "inner_loss and metric"
        )
    return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(dim=1)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Fraction of right answers of each task, float64 `[T]`, from logits `[T, n, N]` and labels `[T, n]`."""
    return (logits.argmax(dim=-1) == labels).to(torch.float64).mean(dim=1)


def one_per_task(values: Tensor, tasks: int, owner: str) -> Tensor:
    """Return `values`, which must be `[T]`: a mean over the tasks would hide that they were mixed.

    Args:
        owner: the method that computed them, for the message.

    Raises:
        UserError: another shape.
    """
    if not isinstance(values, Tensor) or values.shape != (tasks,):
        got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise UserError(f"Expected {owner} to return one value per task, [{tasks}], got {got}; average over the images")
    return values


def scalar_and_logits(result: object, tasks: int, owner: str) -> tuple[Tensor, Tensor]:
    """Return `result`, which must be a scalar loss and the query logits of each task, `[T, ...]`.

    Args:
        owner: the method that computed them, for the message.

    Raises:
        UserError: anything else.
    """
    parts = tuple(result) if isinstance(result, tuple | list) else (result,)
    got = [list(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
    if not all(isinstance(part, Tensor) for part in parts) or len(parts) != 2 or got[0] or got[1][:1] != [tasks]:
        listed = " and ".join(map(str, got)) or "nothing"
        raise UserError(
            f"Expected {owner} to return a scalar loss and the logits [{tasks}, n, N], got {listed}; return these two"
        )
    loss, logits = parts
    return loss, logits


def with_gradients(loss: Tensor, parameters: Iterable[Tensor], gradients: Iterable[Tensor]) -> Tensor:
    """A scalar with the value of `loss` whose gradient by each of `parameters` is the given one."""
    surrogate = torch.stack([(p * g).sum() for p, g in zip(parameters, gradients, strict=True)]).sum()
    return loss + (surrogate - surrogate.detach())


def require_ways(logits: Tensor, labels: Tensor, *, or_fewer: bool = False) -> None:
    """Refuse logits `[T, n, N]` for tasks without exactly N classes, according to the support labels `[T, N*K]`.

    With fewer classes, the surplus logits would count as wrong answers. Targets of floating point have no classes.
    Labels cannot be read while a CUDA graph is captured; the same ones were checked before, when the code ran eagerly.

    Args:
        or_fewer: not every class needs a label.

    Raises:
        UserError: names both numbers.
    """
    if labels.is_floating_point() or (labels.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    ways = int(labels.max()) + 1
    if ways > logits.shape[-1] or (ways < logits.shape[-1] and not or_fewer):
        raise UserError(
            f"Expected tasks of {logits.shape[-1]} classes, the ways of the strategy, got tasks of {ways}; draw them "
            f"with ways={logits.shape[-1]}, or build the strategy for {ways}"
        )

"""Shared by our `torch.autograd.Function`s: their precision under autocast, and the last derivative."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

_R = TypeVar("_R")


def without_autocast(function: Callable[..., _R]) -> Callable[..., _R]:
    """Run a Function's `forward` or `backward`, or a module's `forward`, in the precision of its tensors.

    For formulas that mix products, which `torch.autocast` would round, with sums, which it would not. Also, a backward
    pass inside an autocast block would see other types than the forward pass outside of it.
    """

    @functools.wraps(function)
    def run(ctx: Any, *arguments: Any) -> _R:
        kind = next((a.device.type for a in arguments if isinstance(a, Tensor)), "cpu")
        if not torch.is_autocast_enabled(kind):
            return function(ctx, *arguments)
        with torch.autocast(kind, enabled=False):
            return function(ctx, *arguments)

    return run


def last_derivative(backward: Callable[..., tuple[Tensor | None, ...]]) -> Callable[..., tuple[Tensor | None, ...]]:
    """A `backward` that is not differentiable itself: differentiating what it returns raises NotImplementedError.

    `torch.autograd.function.once_differentiable` raises, too, but not if `torch.autograd.grad` is called with given
    inputs: its results are not connected to them, and their contribution is silently left out.
    """

    @functools.wraps(backward)
    def run(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            results = backward(ctx, *grads)
        sources = [t for t in (*grads, *ctx.saved_tensors) if t is not None and t.requires_grad]
        if not (torch.is_grad_enabled() and sources):
            return results
        connected = iter(_NotDifferentiable.apply(*(t for t in results if t is not None), *sources))
        return tuple(None if t is None else next(connected) for t in results)

    return run


class _NotDifferentiable(torch.autograd.Function):
    """Returns its arguments unchanged, and raises for their derivatives."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        del ctx
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> None:
        del ctx, grads
        raise NotImplementedError(
            "metakm's modulators and norms have first and second derivatives, not third ones; differentiate at most "
            "twice, or compute the third derivative by finite differences of the second"
        )

"""A gradient-descent step in one kernel launch, with its derivatives."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor


@functools.cache
def _zero(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros((), dtype=dtype, device=device)


class SGDStep(torch.autograd.Function):
    """phi - alpha g, in one launch; its derivatives are -alpha v and -sum(v g)."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, gradient: Tensor, rate: Tensor) -> Tensor:
        """See the class. All of one shape, except the rate, which may be broadcast."""
        ctx.save_for_backward(gradient, rate)
        return torch.addcmul(parameter, gradient, rate, value=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """See the class."""
        (v,) = grads
        gradient, rate = ctx.saved_tensors
        _, for_gradient, for_rate = ctx.needs_input_grad
        zero = _zero(v.dtype, v.device)
        return (
            v,
            torch.addcmul(zero, v, rate, value=-1) if for_gradient else None,
            torch.addcmul(zero, v, gradient, value=-1).sum_to_size(rate.shape) if for_rate else None,
        )

"""Training that diverges."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


class DivergedError(RuntimeError):
    """The loss or its gradient is not finite."""


def is_finite(loss: float, parameters: Iterable[Tensor]) -> bool:
    """Whether a loss and the gradients of these parameters are finite."""
    gradients = [p.grad.reshape(-1) for p in parameters if p.grad is not None]
    return math.isfinite(loss) and bool(torch.cat(gradients).isfinite().all())  # one look: each waits for a GPU

"""An exponential moving average of parameters (Polyak averaging), to evaluate in their place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class ParameterAverage:
    """The average a of parameters p: starts at p, and after step t = 1, 2, ... becomes d a + (1 - d) p.

    d is the smaller of `decay` and (1 + t) / (10 + t), so that the start is soon forgotten.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.values: list[Tensor] = []
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Restart from the current parameters."""
        self.values = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average after a step; the first step is 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.lerp_(parameter, 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """In the block the parameters have the average's values."""
        own = [p.detach().clone() for p in self.parameters]
        self._write(self.values)
        try:
            yield
        finally:
            self._write(own)

    def load(self, values: Sequence[Tensor]) -> None:
        """Restore `values` of an earlier average.

        Raises:
            ValueError: another number of tensors, or other shapes.
        """
        for parameter, value in zip(self.parameters, values, strict=True):
            if parameter.shape != value.shape:
                raise ValueError(f"an average of {list(value.shape)}, where {list(parameter.shape)} belongs")
        self.values = [value.to(p.device, p.dtype) for p, value in zip(self.parameters, values, strict=True)]

    @torch.no_grad()
    def _write(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

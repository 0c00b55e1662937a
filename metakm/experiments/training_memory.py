"""How much memory the first training steps take."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from metakm.run.peak_memory import reset_peak, resident_bytes

STEPS = 3


class TrainingMemory:
    """The peak of the first steps above what the process held before them: activations, gradients, optimiser's state.

    mb: in 10^6 bytes, of the resident set or of a GPU's allocations; None before `STEPS` steps, or where the system
        does not tell (it takes Linux or CUDA).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.mb: float | None = None
        self._steps = 0
        self._before: int | None = None

    def before_step(self, rehearse: Callable[[], object]) -> None:
        """Before the first step, note what is held, and start to look for the peak.

        Args:
            rehearse: does what a step does, and keeps nothing: the first use of PyTorch's kernels loads their code.
        """
        if self._steps == 0:
            rehearse()
            gc.collect()
            self._before = self._start()

    def after_step(self) -> None:
        """After the last of the steps, note the peak."""
        self._steps += 1
        if self._steps == STEPS:
            self.mb = self._above()

    def resume(self, mb: float | None, steps: int) -> None:
        """Go on after so many steps, of which another process has measured the first: no longer from nothing."""
        self.mb, self._steps = mb, steps

    def _start(self) -> int | None:
        if not reset_peak(self.device):
            return None
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else resident_bytes("VmRSS")

    def _above(self) -> float | None:
        cuda = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self.device) if cuda else resident_bytes("VmHWM")
        return None if peak is None or self._before is None else round((peak - self._before) / 1e6, 1)

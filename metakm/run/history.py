"""Training history of a run, meta-learned or supervised: learning curve and timers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from metakm.learning.outer_loop import StepResult
from metakm.run import provenance
from metakm.run.curve import CurvePoint

SAVE_SECONDS = 60.0  # between checkpoints: a killed run loses at most this much, and one iteration


class Trainable(Protocol):
    """What a run trains, one iteration after the other."""

    iteration: int

    def step(self) -> StepResult:
        """The next iteration."""

    def state(self) -> dict[str, Any]:
        """Everything that the next steps depend on, loadable with `weights_only=True`."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""


class History:
    """The learning curve of a run, and its timers.

    curve: one point per validation; train_seconds: iterations and validations; step_seconds: iterations alone; origin:
    of all processes that have worked on the run, see `metakm.run.provenance.both`.
    """

    def __init__(self, origin: Mapping[str, str]) -> None:
        self.origin: dict[str, Any] = dict(origin)
        self.curve: list[CurvePoint] = []
        self.since: list[tuple[float, float]] = []  # loss and accuracy of the iterations since the last validation
        self.train_seconds = self.step_seconds = 0.0
        self.started_at = provenance.now()
        self._saved = time.monotonic()

    def step(self, trained: Trainable) -> tuple[StepResult, float]:
        """Run one iteration; return its result and its duration in seconds."""
        began = time.monotonic()
        result = trained.step()
        self.since.append((result.loss, result.accuracy))
        elapsed = time.monotonic() - began
        self.step_seconds += elapsed
        self.train_seconds += elapsed
        return result, elapsed

    def validate(self, iteration: int, accuracy: Callable[[], float]) -> CurvePoint:
        """Add a point to the curve, timing `accuracy`, which measures the validation accuracy."""
        began = time.monotonic()
        measured = accuracy()
        self.train_seconds += time.monotonic() - began
        loss, trained = np.mean(self.since, axis=0).tolist() if self.since else (None, None)
        self.since = []
        self.curve.append(CurvePoint(iteration, loss, trained, measured, round(self.train_seconds, 3)))
        return self.curve[-1]

    @property
    def save_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.monotonic() - self._saved > SAVE_SECONDS

    def saved(self) -> None:
        """A checkpoint was written."""
        self._saved = time.monotonic()

    def columns(self, iteration: int) -> dict[str, Any]:
        """The columns of a row that tell of the training so far, after so many iterations."""
        mean = round(1000 * self.step_seconds / iteration, 3) if iteration else None
        return {"train_seconds": round(self.train_seconds, 3), "ms_per_iteration": mean}

    def state(self) -> dict[str, Any]:
        """Its part of a checkpoint."""
        names = ("since", "train_seconds", "step_seconds", "started_at", "origin")
        return {**{name: getattr(self, name) for name in names}, "curve": [list(point) for point in self.curve]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `state`. Raises LookupError, TypeError or ValueError for what is none."""
        self.curve = [CurvePoint.checked(point) for point in state["curve"]]
        self.since = [(float(loss), float(accuracy)) for loss, accuracy in state["since"]]
        self.train_seconds, self.step_seconds = float(state["train_seconds"]), float(state["step_seconds"])
        self.started_at = str(state["started_at"])
        self.origin = provenance.both(state.get("origin", {}), self.origin)  # an older checkpoint has none

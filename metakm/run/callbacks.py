"""Callbacks of a run, and early stopping as one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from metakm.errors import UserError, counted
from metakm.run.curve import CurvePoint


@dataclass(frozen=True, eq=False)
class IterationEvent:
    """An iteration of the training is done.

    Attributes:
        number: how many iterations are done.
        loss: mean over the tasks of its meta-batch, before its step.
        accuracy: the same.
        seconds: how long it took.
        learner: what is trained.
    """

    number: int
    loss: float
    accuracy: float
    seconds: float
    learner: nn.Module


@dataclass(frozen=True, eq=False)
class ValidationEvent:
    """A validation is done.

    Attributes:
        iteration: the one that it followed; 0 before the first.
        accuracy: mean over the meta-validation tasks.
        curve: all validations of the run, also those before a resume; this one is the last.
        learner: what is trained.
    """

    iteration: int
    accuracy: float
    curve: tuple[CurvePoint, ...]
    learner: nn.Module


@dataclass(frozen=True, eq=False)
class EndEvent:
    """The run is done, and its row is written.

    Attributes:
        iterations: how many it was trained for.
        stopped: why training stopped early; empty if it ran to the end.
        accuracy: mean over the meta-test tasks, as a fraction; None if there was no meta-test.
        interval: half-width of its 95 % interval over tasks.
        folder: where the run keeps its files.
    """

    iterations: int
    stopped: str
    accuracy: float | None
    interval: float | None
    folder: Path


class Callback:
    """What a run calls while it trains; each method does nothing unless it is overridden.

    What `on_iteration` or `on_validation` return, if not None, is the reason to stop the training; the run then goes on
    to its meta-test. A callback that remembers anything puts it into `state_dict`, so that a resumed run does the same
    as an uninterrupted one. It must leave the global generators as they are.
    """

    def on_iteration(self, event: IterationEvent) -> str | None:
        """After each iteration."""
        del event
        return None

    def on_validation(self, event: ValidationEvent) -> str | None:
        """After each validation, before its checkpoint is written."""
        del event
        return None

    def on_end(self, event: EndEvent) -> None:
        """Once, when the run is done; not if it was interrupted or failed."""
        del event

    def state_dict(self) -> dict[str, Any]:
        """What belongs in the checkpoint: tensors, numbers, strings, lists, dicts."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`, called when a run is resumed."""
        del state


class EarlyStopping(Callback):
    """Stop when meta-validation has not had a new best accuracy for a number of validations in a row.

    Args:
        patience: that number.

    Raises:
        UserError: `patience` is below 1.
    """

    def __init__(self, patience: int) -> None:
        if patience < 1:
            raise UserError(f"Expected patience to be at least 1 validation, got {patience}; raise it")
        self.patience = patience

    def on_validation(self, event: ValidationEvent) -> str | None:
        """See `Callback`. It follows from the curve alone, so that there is nothing to remember."""
        accuracies = [point.val_accuracy for point in event.curve]
        numbers = [accuracy for accuracy in accuracies if not math.isnan(accuracy)]
        since = len(accuracies) - 1 - (accuracies.index(max(numbers)) if numbers else 0)
        return (
            None if since < self.patience else f"no better meta-validation accuracy in {counted(since, 'validation')}"
        )


class CallbackList:
    """The callbacks of a run, and whether one of them has stopped its training.

    Args:
        learner: what their events show.

    Raises:
        UserError: not all are callbacks.
    """

    def __init__(self, callbacks: Sequence[Any], learner: nn.Module) -> None:
        for callback in callbacks:
            if not isinstance(callback, Callback):
                kind = type(callback).__name__
                raise UserError(f"Expected callbacks that derive from metakm.Callback, got {kind}; derive it")
        self.callbacks: tuple[Callback, ...] = tuple(callbacks)
        self.learner = learner
        self.stopped = ""

    def on_iteration(self, number: int, loss: float, accuracy: float, seconds: float) -> None:
        """See `Callback.on_iteration`."""
        if self.callbacks:
            event = IterationEvent(number, loss, accuracy, seconds, self.learner)
            self._note(number, "on_iteration", [callback.on_iteration(event) for callback in self.callbacks])

    def on_validation(self, curve: Sequence[CurvePoint]) -> None:
        """See `Callback.on_validation`."""
        point = curve[-1]
        event = ValidationEvent(point.iteration, point.val_accuracy, tuple(curve), self.learner)
        returned = [callback.on_validation(event) for callback in self.callbacks]
        self._note(point.iteration, "on_validation", returned)

    def on_end(self, event: EndEvent) -> None:
        """See `Callback.on_end`."""
        for callback in self.callbacks:
            callback.on_end(event)

    def _note(self, iteration: int, method: str, returned: Sequence[str | None]) -> None:
        for callback, reason in zip(self.callbacks, returned, strict=True):
            if not isinstance(reason, str | None):
                raise UserError(
                    f"Expected {type(callback).__qualname__}.{method} to return None or, to stop the training, a "
                    f"reason in words, got {reason!r:.100}; return one of these"
                )
            if reason is not None and not self.stopped:
                self.stopped = f"after {counted(iteration, 'iteration')}: {' '.join(reason.split())}"

    def state(self) -> dict[str, Any]:
        """Its part of a checkpoint."""
        kept = [[type(callback).__qualname__, callback.state_dict()] for callback in self.callbacks]
        return {"stopped": self.stopped, "callbacks": kept}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `state`: each callback gets what one of its class kept, in order; others are new to the run.

        Raises:
            LookupError, TypeError, ValueError: not the state of callbacks.
        """
        self.stopped = str(state.get("stopped", ""))
        kept = [(str(name), dict(values)) for name, values in state.get("callbacks", [])]
        for callback in self.callbacks:
            mine = next((entry for entry in kept if entry[0] == type(callback).__qualname__), None)
            if mine is not None:
                kept.remove(mine)
                callback.load_state_dict(mine[1])

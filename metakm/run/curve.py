"""The learning curve of a run, as a table and as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metakm.errors import UserError
from metakm.io.csv_file import csv_text, read_csv
from metakm.io.figure import figure_bytes, new_figure


class CurvePoint(NamedTuple):
    """State at one validation; training figures are means since the previous one."""

    iteration: int
    train_loss: float | None
    train_accuracy: float | None
    val_accuracy: float  # NaN: not measured, an empty cell in the file
    seconds: float  # of training so far

    @classmethod
    def checked(cls, values: Any) -> CurvePoint:
        """A point from a file. Raises TypeError or ValueError for values that do not make one."""
        iteration, loss, trained, accuracy, seconds = values
        loss, trained = (None if value is None else float(value) for value in (loss, trained))
        return cls(int(iteration), loss, trained, math.nan if accuracy is None else float(accuracy), float(seconds))

    @property
    def validated(self) -> bool:
        """Whether the validation accuracy was measured."""
        return not math.isnan(self.val_accuracy)

    def values(self) -> dict[str, Any]:
        """By name, with None for what was not measured."""
        return self._asdict() | ({} if self.validated else {"val_accuracy": None})


def curve_csv(points: Sequence[CurvePoint]) -> str:
    """The points as CSV with a header."""
    return csv_text([point.values() for point in points], CurvePoint._fields)


def read_curve(path: Path) -> list[CurvePoint]:
    """Inverse of `curve_csv`, from a file.

    Raises:
        UserError: no such file, or one that is no learning curve.
    """
    try:
        lines = read_csv(path)
        if not lines:
            raise ValueError("no point")
        return [CurvePoint.checked([line[name] or None for name in CurvePoint._fields]) for line in lines]
    except KeyError as error:
        raise UserError(f"Expected a learning curve in {path}, got no column {error}") from error
    except (UserError, ValueError, TypeError, OverflowError) as error:
        raise UserError(f"Expected a learning curve in {path}, got {error}") from error


def curve_png(points: Sequence[CurvePoint], title: str, stage: str = "meta-") -> bytes:
    """Accuracy in training and validation by iteration, as a PNG file's bytes; `stage` stands before these words."""
    figure = new_figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    iterations = [p.iteration for p in points]
    trained = [(p.iteration, p.train_accuracy) for p in points if p.train_accuracy is not None]
    if trained:
        axes.plot(*zip(*trained, strict=True), label=f"{stage}train", color="#999999")
    if any(p.validated for p in points):
        axes.plot(iterations, [p.val_accuracy for p in points], label=f"{stage}validation", marker="o", markersize=3)
    axes.set(xlabel="iteration", ylabel="accuracy", title=title, ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure_bytes(figure)

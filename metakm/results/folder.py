"""The folder of one run and the files in it, each replaced whole."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from metakm.errors import UserError
from metakm.files import replacing, write_text
from metakm.lock import Lock
from metakm.results.curve import CurvePoint, curve_csv, curve_png
from metakm.results.row import COLUMNS, ResultRow


class RunFolder:
    """`<out>/<dataset>-<ways>w<shots>s/<algo>/seed<k>/`.

    It holds config.json, curve.csv, curve.png, tasks.csv, checkpoint.pt and result.csv, and while a run has claimed it
    run.lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint.pt"
        self.result = path / "result.csv"
        self.lock = Lock(path / "run.lock")

    def claim(self) -> None:
        """Make the folder, check that it can be written, and keep other processes out until `release`.

        Raises:
            UserError: it cannot be written.
            InUseError: another process has claimed it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass  # permissions alone do not tell: read-only mounts, quotas, and root, whom they do not bind
        except OSError as error:
            raise UserError(
                f"Expected to write to {self.path}, got {error.strerror or error}; choose another --out"
            ) from error
        self.lock.acquire()

    def release(self) -> None:
        """Let other processes in."""
        self.lock.release()

    @property
    def used(self) -> bool:
        """Whether an earlier run has left its checkpoint or result here."""
        return self.checkpoint.exists() or self.result.exists()

    def clear(self) -> None:
        """Remove the files of an earlier run, and nothing else."""
        for name in ("result.csv", "tasks.csv", "curve.csv", "curve.png", "checkpoint.pt", "config.json"):
            (self.path / name).unlink(missing_ok=True)

    def write_config(self, values: dict[str, Any]) -> None:
        """config.json."""
        write_text(self.path / "config.json", json.dumps(values, indent=2) + "\n")

    def write_curve(self, points: Sequence[CurvePoint]) -> None:
        """curve.csv."""
        write_text(self.path / "curve.csv", curve_csv(points))

    def write_picture(self, points: Sequence[CurvePoint], title: str) -> None:
        """curve.png."""
        with replacing(self.path / "curve.png") as file:
            file.write(curve_png(points, title))

    def write_tasks(self, accuracies: npt.NDArray[np.float64]) -> None:
        """tasks.csv: the accuracy `[n]` of each meta-test task with its episode index."""
        table = pd.DataFrame({"episode": np.arange(len(accuracies)), "accuracy": accuracies})
        write_text(self.path / "tasks.csv", table.to_csv(index=False))

    def write_row(self, row: ResultRow) -> None:
        """result.csv."""
        write_text(self.result, row.to_csv())

    def read_row(self) -> dict[str, Any] | None:
        """The row of an earlier run in result.csv as JSON values; None where there is none that can be read."""
        try:
            table = pd.read_csv(self.result)
        except (OSError, ValueError):
            return None
        if len(table) != 1 or tuple(table.columns) != COLUMNS:
            return None
        values = table.astype(object).iloc[0]  # one by one, so that a number keeps its own type
        row = {str(name): None if pd.isna(value) else value for name, value in values.items()}
        measured = (row["accuracy"], row["ci95"])
        if row["status"] == "done" and not all(isinstance(v, float) and math.isfinite(v) for v in measured):
            return None
        return row

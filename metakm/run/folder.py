"""The folder of one run and the files in it, each replaced whole."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from metakm.cli.progress import log_line
from metakm.errors import UserError
from metakm.io.csv_file import csv_text, read_csv
from metakm.io.files import atomic_write, write_text
from metakm.io.lock import InUseError, Lock
from metakm.run.curve import CurvePoint, curve_csv, curve_png
from metakm.run.row import CsvRow, ResultRow

_OUTCOMES = ("tasks.csv", "right.txt", "pack.safetensors")  # beside the row and the weights


class RunFolder:
    """`<out>/<dataset>-<ways>w<shots>s/<algo>/seed<k>/`, or `<out>/<experiment>/<method>/seed<k>/`.

    It holds config.json, curve.csv, curve.png, checkpoint.pt, the row in `result`, and the files of its kind of run,
    such as tasks.csv and weights.safetensors; and run.lock while a process works in it.

    Args:
        row: the kind of row that the run writes.
    """

    def __init__(self, path: Path, row: type[CsvRow] = ResultRow) -> None:
        self.path, self.row = path, row
        self.checkpoint = path / "checkpoint.pt"
        self.weights = path / "weights.safetensors"
        self.pack = path / "pack.safetensors"
        self.result = path / row.FILE
        self.lock = Lock(path / "run.lock")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder, check that it can be written, and keep other processes out.

        They are let in again when the block raises, else by `release`.

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
        try:
            yield
        except BaseException:
            self.lock.release()
            raise

    def release(self) -> None:
        """Release the lock. A row that still says running, of a run that ended early, is marked first, if it can be."""
        if self.lock.held:
            with contextlib.suppress(OSError):
                self.mark_interrupted({})
        self.lock.release()

    @property
    def used(self) -> bool:
        """Whether an earlier run has left its checkpoint or row here."""
        return self.checkpoint.exists() or self.result.exists()

    @property
    def irreplaceable(self) -> bool:
        """Whether it has results without a checkpoint to redo them: a finished or unreadable row, or weights."""
        if self.checkpoint.exists():
            return False
        if any((self.path / name).exists() for name in (self.weights.name, *_OUTCOMES)):
            return True
        row = self.read_row()
        return self.result.exists() if row is None else row["status"] == "done"

    @property
    def unresumable(self) -> str:
        """An irreplaceable folder in words."""
        return f"{self.path}, which has weights, tasks or a row of an earlier run but no {self.checkpoint.name}"

    def claim(
        self, load: Callable[[], None], *, run_id: str, resume: bool, overwrite: bool, iterations: int
    ) -> dict[str, Any] | None:
        """Claim the folder for a run of `iterations`, and `load` the checkpoint that is there.

        Returns the row of a run that is resumed but finished, else None.

        Raises:
            UserError: see `locked` and `check_earlier_run`.
        """
        with self.locked():
            if overwrite:
                self.clear()
            finished = self.check_earlier_run(run_id=run_id, resume=resume, iterations=iterations)
            if self.checkpoint.exists():
                load()
        return finished

    def write_config_and_clear_results(self, config: dict[str, Any]) -> None:
        """Write config.json, and remove the results of a shorter run: the checkpoint has its model, too."""
        for name in (self.weights.name, *_OUTCOMES):
            (self.path / name).unlink(missing_ok=True)
        self.write_config(config)

    def check_earlier_run(self, *, run_id: str, resume: bool, iterations: int) -> dict[str, Any] | None:
        """Check that an earlier run in here is to be resumed.

        Returns the row of a run that is resumed but finished, else None; a checkpoint that is there is to be loaded.

        Args:
            run_id: of the run that wants the folder; its finished row, such as a committed one, needs no checkpoint.
            iterations: a run of fewer is not finished.

        Raises:
            UserError: there is an earlier run that is not to be resumed, or results without a checkpoint.
        """
        row = self.read_finished_row()
        finished = row if row is not None and row["iterations"] >= iterations else None
        if resume and finished is not None and finished["run_id"] == run_id:
            return finished
        if self.irreplaceable:
            raise UserError(
                f"Expected an unused run folder or a checkpoint to resume, got {self.unresumable}; add --overwrite to "
                "replace it, or choose another --out"
            )
        if self.used and not resume:
            raise UserError(
                f"Expected an unused run folder, got {self.path}, which has an earlier run; add --resume to "
                "continue it, --overwrite to replace it, or choose another --out"
            )
        return finished

    def clear(self) -> None:
        """Remove the files of an earlier run, and nothing else."""
        others = ("curve.csv", "curve.png", "config.json")
        for name in (self.result.name, self.weights.name, self.checkpoint.name, *_OUTCOMES, *others):
            (self.path / name).unlink(missing_ok=True)

    def write_config(self, values: dict[str, Any]) -> None:
        """config.json."""
        write_text(self.path / "config.json", json.dumps(values, indent=2) + "\n")

    def write_curve(self, points: Sequence[CurvePoint]) -> None:
        """curve.csv."""
        write_text(self.path / "curve.csv", curve_csv(points))

    def write_picture(self, points: Sequence[CurvePoint], title: str, stage: str = "meta-") -> None:
        """curve.png, if it can be drawn; the run does not fail without it."""
        try:
            picture = curve_png(points, title, stage)
        except UserError as error:
            log_line(f"curve.png was not drawn: {error}; curve.csv has its figures")
            return
        except Exception as error:  # matplotlib's settings and installation may raise anything
            log_line(f"curve.png could not be drawn ({error}); curve.csv has its figures")
            return
        with atomic_write(self.path / "curve.png") as file:
            file.write(picture)

    def write_tasks(self, accuracies: npt.NDArray[np.float64]) -> None:
        """tasks.csv: the accuracy `[n]` of each meta-test task with its episode index."""
        lines = [{"episode": index, "accuracy": value} for index, value in enumerate(accuracies.tolist())]
        write_text(self.path / "tasks.csv", csv_text(lines, ("episode", "accuracy")))

    def read_tasks(self) -> npt.NDArray[np.float64] | None:
        """Inverse of `write_tasks`; None where there is no such file that can be read."""
        try:
            return np.array([float(line["accuracy"]) for line in read_csv(self.path / "tasks.csv")])
        except (LookupError, ValueError, UserError):
            return None

    def write_weights(self, data: bytes) -> None:
        """weights.safetensors."""
        with atomic_write(self.weights) as file:
            file.write(data)

    def write_row(self, row: CsvRow) -> None:
        """The row's file."""
        write_text(self.result, row.to_csv())

    def mark_interrupted(self, columns: Mapping[str, Any]) -> dict[str, Any] | None:
        """Change a row's status from running to interrupted, with the given `columns`; then release the lock.

        Returns the row; None where there is none to change, or where another process works in the folder.
        """
        if not self.result.exists():
            return None
        with contextlib.suppress(InUseError):
            if not self.lock.held:
                self.lock.acquire()
            try:
                row = self.read_row()
                if row is not None and row["status"] == "running":
                    row |= {**columns, "status": "interrupted"}
                    self.write_row(self.row(**row))
                    return row
            finally:
                self.lock.release()
        return None

    def read_row(self) -> dict[str, Any] | None:
        """The row of an earlier run as JSON values; None where there is none that can be read."""
        try:
            row: dict[str, Any] = vars(self.row.read(self.result))
        except (ValueError, UserError):
            return None
        measured = [row[name] for name in self.row.FINISHED]
        if row["status"] == "done" and not all(isinstance(v, float) and math.isfinite(v) for v in measured):
            return None
        return row

    def read_finished_row(self) -> dict[str, Any] | None:
        """As `read_row`, but None for the row of a run that is not done."""
        row = self.read_row()
        return row if row is not None and row["status"] == "done" else None

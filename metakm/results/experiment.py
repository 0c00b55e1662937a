"""The row of one supervised run: an experiment of the paper, one of its methods, one seed; and rows taken together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from metakm.errors import UserError
from metakm.results.collect import read_csv
from metakm.results.row import CsvRow, Status
from metakm.results.statistics import interval_over_seeds


@dataclass(frozen=True, kw_only=True)
class ExperimentRow(CsvRow):
    """One run. Accuracies are fractions; None is a number that was not measured, an empty cell in the file."""

    FILE: ClassVar[str] = "experiment.csv"
    FINISHED: ClassVar[tuple[str, ...]] = ("val_accuracy",)

    run_id: str
    status: Status
    experiment: str
    method: str
    dataset: str
    network: str
    seed: int
    preset: str
    image_size: int
    n_train: int  # training images
    epochs: int
    batch: int
    optimiser: str
    learning_rate: float
    iterations: int  # done
    trainable_parameters: int
    total_parameters: int  # with the modulators
    pack_bytes: int | None  # size of the task's file; None where the whole network is the task's
    train_accuracy: float | None  # mean over the last epoch's batches, augmented, each before its step
    val_accuracy: float | None  # after the last epoch
    accuracy: float | None  # on the test part, after the last epoch
    ci95: float | None  # half-width of the 95 % interval of that accuracy over test images, 1.96 sqrt(p (1 - p) / n)
    n_test: int
    train_seconds: float  # wall time of training, validation included
    ms_per_iteration: float | None  # mean wall time of a training iteration, validation excluded
    peak_memory_mb: float  # largest resident set of the process, or allocation on the GPU; 10^6 bytes
    device: str
    threads: int
    torch_version: str
    metakm_version: str
    git_commit: str
    split_hash: str
    started_at: str  # UTC, ISO 8601


@dataclass(frozen=True)
class Schedule:
    """What the runs of one line of a table have in common beside the method; only these are comparable."""

    experiment: str
    dataset: str
    preset: str
    image_size: int
    n_train: int
    epochs: int
    batch: int
    optimiser: str

    def __str__(self) -> str:
        return (
            f"{self.preset}: {self.dataset}, {self.n_train:,} images of {self.image_size} px, {self.epochs} epochs, "
            f"batch {self.batch}, {self.optimiser}"
        )


@dataclass(frozen=True)
class Line:
    """One method on one schedule: its finished runs, one a seed. Percent."""

    schedule: Schedule
    method: str
    learning_rate: float
    rows: tuple[ExperimentRow, ...]  # by seed

    @property
    def first(self) -> ExperimentRow:
        """A run, for what is the same in all."""
        return self.rows[0]

    @property
    def accuracies(self) -> npt.NDArray[np.float64]:
        """Test accuracy of each seed, `[S]`."""
        return np.array([100 * row.accuracy for row in self.rows if row.accuracy is not None])

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(self.accuracies.mean())

    @property
    def plus_minus(self) -> float:
        """Half-width of the 95 % interval: over seeds, Student's t; with one seed over test images."""
        over_seeds = interval_over_seeds(self.accuracies)
        return 100 * (self.first.ci95 or 0.0) if over_seeds is None else over_seeds


def read_experiments(folder: Path) -> tuple[list[ExperimentRow], list[str]]:
    """The rows of every `experiment.csv` below a folder, and what could not be read, by name.

    Raises:
        UserError: `folder` is no folder.
    """
    if not folder.is_dir():
        raise UserError(f"Expected a folder of results, got {folder}; give the --out of your runs")
    rows, problems = [], []
    for path in sorted(folder.rglob(ExperimentRow.FILE)):
        try:
            lines = read_csv(path)
            if len(lines) != 1:
                raise UserError(f"Expected one row, got {len(lines)}; give each run its own folder")
            rows.append(ExperimentRow.from_cells(lines[0]))
        except UserError as error:
            problems.append(f"{path.relative_to(folder).as_posix()}: {error}")
    return rows, problems


def lines_of(rows: Iterable[ExperimentRow]) -> tuple[list[Line], list[str]]:
    """Group finished, tested runs by schedule, method and learning rate; and say which runs are left out, and why.

    Runs to choose a learning rate (`--tune`) are counted only.
    """
    groups: dict[tuple[Schedule, str, float], dict[int, ExperimentRow]] = {}
    left_out, tuned = [], 0
    for row in rows:
        if row.status != "done":
            left_out.append(f"{row.run_id}: {row.status}")
            continue
        if row.accuracy is None:
            tuned += 1
            continue
        schedule = Schedule(**{f.name: getattr(row, f.name) for f in fields(Schedule)})
        seeds = groups.setdefault((schedule, row.method, row.learning_rate), {})
        if row.seed in seeds:
            left_out.append(f"{row.run_id}: a second run of seed {row.seed}")
        else:
            seeds[row.seed] = row
    lines = [Line(*key, tuple(seeds[s] for s in sorted(seeds))) for key, seeds in groups.items()]
    return lines, [*left_out, *([f"finished without a test (--tune): {tuned}"] if tuned else [])]

"""The row of one supervised run: one experiment of the paper, one method, one seed; and summaries of rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from metakm.config.execution import SHARED_EXECUTION_FIELDS
from metakm.errors import UserError
from metakm.io.files import expanded
from metakm.learning.statistics import interval_over_seeds
from metakm.run.config_file import read_config_file
from metakm.run.row import CsvRow, Status

# Fields of a run's config.json that say where and how it is executed, and which others with it: not what it computes.
EXECUTION_FIELDS = SHARED_EXECUTION_FIELDS | {"methods"}
_OF_METHOD = ("momentum", "weight_decay", "residual_start", "annealed", "start")
_USUAL = {"residual_start": "1.0", "annealed": "true"}  # also where a file lacks them
# What the row's seed, accuracy, n_train and split_hash tell.
_IN_ROW = frozenset({"seed", "tune", "hold_out", "train_images", "data", "classes"})
Settings = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class ExperimentRow(CsvRow):
    """One run. Accuracies are fractions; None is a number that was not measured, an empty cell in the file."""

    FILE: ClassVar[str] = "experiment.csv"
    FINISHED: ClassVar[tuple[str, ...]] = ("train_accuracy",)
    FORMER: ClassVar[frozenset[str]] = frozenset({"peak_memory_mb"})

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
    val_accuracy: float | None  # after the last epoch; empty where the run trained on the validation part
    accuracy: float | None  # on the test part, after the last epoch
    ci95: float | None  # half-width of the 95 % interval of that accuracy over test images, 1.96 sqrt(p (1 - p) / n)
    n_test: int
    train_seconds: float  # wall time of training, validation included
    ms_per_iteration: float | None  # mean wall time of a training iteration, validation excluded
    device: str
    threads: int
    torch_version: str
    metakm_version: str
    git_commit: str
    split_hash: str
    started_at: str  # UTC, ISO 8601
    start: str = ""  # of the kernel modulators: exact or paper; empty without any, or where a row is older: then paper
    residual_start: float = 1.0  # of the scale of each residual block's last norm; tbn draws its own
    training_memory_mb: float | None = None  # see `TrainingMemory`; empty where the system does not tell


@dataclass(frozen=True)
class RecordedExperiment:
    """One run, as read from its files: the row, and what config.json adds to it, sorted."""

    row: ExperimentRow
    shared: Settings  # of the experiment: all its methods have the same
    own: Settings  # of the method


@dataclass(frozen=True)
class ComparableSetup:
    """What the runs of one line of a table have in common besides the method; only such runs are comparable."""

    experiment: str
    dataset: str
    preset: str
    image_size: int
    n_train: int
    epochs: int
    batch: int
    optimiser: str
    settings: Settings = ()  # what config.json adds, and the split_hash

    def __str__(self) -> str:
        return (
            f"{self.preset}: {self.dataset}, {self.n_train:,} images of {self.image_size} px, {self.epochs} epochs, "
            f"batch {self.batch}, {self.optimiser}"
        )


@dataclass(frozen=True)
class Line:
    """One method on one setup: its finished runs, one per seed, in percent."""

    setup: ComparableSetup
    method: str
    learning_rate: float
    own: Settings  # what config.json adds about the method
    rows: tuple[ExperimentRow, ...]  # by seed

    @property
    def first(self) -> ExperimentRow:
        """Any of the runs, for what they have in common."""
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


def read_experiments(folder: str | Path) -> tuple[list[RecordedExperiment], list[str]]:
    """The rows of every `experiment.csv` below a folder, and what could not be read, by name.

    Raises:
        UserError: `folder` is not a folder.
    """
    folder = expanded(folder, "the folder of results")
    if not folder.is_dir():
        raise UserError(f"Expected a folder of results, got {folder}; give the --out of your runs")
    runs, problems = [], []
    for path in sorted(folder.rglob(ExperimentRow.FILE)):
        try:
            row = ExperimentRow.read(path)
            runs.append(_recorded(row, read_config_file(path.parent)))
        except UserError as error:
            problems.append(f"{path.relative_to(folder).as_posix()}: {error}")
    return runs, problems


def _recorded(row: ExperimentRow, config: Mapping[str, Any] | None) -> RecordedExperiment:
    if config is None:
        return RecordedExperiment(row, (("config.json", "missing"),), (("network", row.network),))
    told = (EXECUTION_FIELDS | _IN_ROW | {f.name for f in fields(ExperimentRow)}) - {*_OF_METHOD}
    texts = {name: v if isinstance(v, str) else json.dumps(v) for name, v in config.items() if name not in told}
    texts |= {"start": row.start} if row.start else {}  # config.json has "auto", too
    shared = tuple(sorted((name, text) for name, text in texts.items() if name not in _OF_METHOD))
    own = tuple((n, texts[n]) for n in _OF_METHOD if n in texts and texts[n] != _USUAL.get(n))
    return RecordedExperiment(row, shared, own)


def lines_of(runs: Iterable[RecordedExperiment]) -> tuple[list[Line], list[str]]:
    """Group finished, tested runs that differ only in their seed; also return which runs are left out, and why.

    Runs that choose a learning rate (`--tune`) are only counted.
    """
    groups: dict[tuple[ComparableSetup, str, float, Settings], dict[int, ExperimentRow]] = {}
    left_out, tuned = [], 0
    for run in runs:
        row = run.row
        if row.status != "done":
            left_out.append(f"{row.run_id}: {row.status}")
            continue
        if row.accuracy is None:
            tuned += 1
            continue
        settings = (*run.shared, ("split_hash", row.split_hash))
        values = {f.name: getattr(row, f.name) for f in fields(ComparableSetup) if f.name != "settings"}
        seeds = groups.setdefault(
            (ComparableSetup(**values, settings=settings), row.method, row.learning_rate, run.own), {}
        )
        if row.seed in seeds:
            left_out.append(f"{row.run_id}: a second run of seed {row.seed}")
        else:
            seeds[row.seed] = row
    lines = [Line(*key, tuple(seeds[s] for s in sorted(seeds))) for key, seeds in groups.items()]
    return lines, [*left_out, *([f"finished without a test (--tune): {tuned}"] if tuned else [])]


def setup_titles(setups: Iterable[ComparableSetup]) -> dict[ComparableSetup, str]:
    """A title for each setup, in the order of the titles; it names the settings in which the setups differ."""
    setups = list(setups)
    differing = _differing([setup.settings for setup in setups])
    titles = {setup: f"{setup}{_format_settings(setup.settings, differing)}" for setup in setups}
    return dict(sorted(titles.items(), key=lambda item: item[1]))


def line_names(lines: Sequence[Line], *, with_rate: bool = False, always: Sequence[str] = ()) -> list[str]:
    """The method of each line of one setup; where a method has several lines, what they differ in, too.

    Args:
        with_rate: include the learning rate, if nothing else names it.
        always: settings to name wherever they are not the usual ones.
    """
    names = []
    for line in lines:
        same = [other for other in lines if other.method == line.method]
        rate = f", {line.learning_rate:g}" if with_rate and len({other.learning_rate for other in same}) > 1 else ""
        told = _differing([other.own for other in same]) | {*always}
        names.append(f"{line.method}{rate}{_format_settings(line.own, told)}")
    return names


def _differing(settings: Sequence[Settings]) -> frozenset[str]:
    """Names whose values differ."""
    return frozenset(
        name for one in settings for name, value in one if any(dict(other).get(name) != value for other in settings)
    )


def _format_settings(settings: Settings, names: frozenset[str]) -> str:
    return "".join(f", {name} {value}" for name, value in settings if name in names)

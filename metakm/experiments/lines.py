"""Rows of experiments, as read from a folder: one line of a table for each method, with its accuracy over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from metakm.errors import UserError
from metakm.experiments.right import Right, read_right
from metakm.experiments.row import EXPERIMENT_EXECUTION_FIELDS, ExperimentRow
from metakm.learning.statistics import (
    Verdict,
    combined_interval,
    interval_over_seeds,
    interval_over_tasks,
    paired_difference,
    residual_interval,
    verdict,
)
from metakm.run.config_file import read_config_file

_OF_METHOD = ("momentum", "weight_decay", "residual_start", "annealed", "start")
_USUAL = {"residual_start": "1.0", "annealed": "true"}  # also where a file lacks them
# What the row's seed, accuracy, n_train and split_hash tell.
_IN_ROW = frozenset({"seed", "tune", "hold_out", "train_images", "data", "classes"})
Settings = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class RecordedExperiment:
    """One run, as read from its files: the row, and what config.json adds to it, sorted."""

    row: ExperimentRow
    shared: Settings  # of the experiment: all its methods have the same
    own: Settings  # of the method
    right: Right | None = field(default=None, compare=False)  # None where the run is older, or was not tested


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
    runs: tuple[RecordedExperiment, ...]  # by seed

    @property
    def rows(self) -> tuple[ExperimentRow, ...]:
        """Of the runs."""
        return tuple(run.row for run in self.runs)

    def right_of(self, seeds: Sequence[int]) -> npt.NDArray[np.float64] | None:
        """100 for each test image that is classified correctly, else 0, `[S, n]`; None if not known of each seed."""
        found = [run.right for run in self.runs if run.row.seed in seeds]
        return None if any(each is None for each in found) or not found else 100 * np.stack(cast(list[Right], found))

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
        """Half-width of the 95 % interval: over seeds and test images, combined; with one seed over test images."""
        over_seeds = interval_over_seeds(self.accuracies)
        if over_seeds is None:
            return 100 * (self.first.ci95 or 0.0)
        right = self.right_of([row.seed for row in self.rows])
        if right is None:
            return over_seeds
        combined = combined_interval(over_seeds, interval_over_tasks(right.mean(axis=0)), residual_interval(right))
        return cast(float, combined)


class Difference(NamedTuple):
    """One method minus another, in points, and the half-width of its 95 % interval."""

    mean: float
    ci95: float
    seeds: int

    @property
    def verdict(self) -> Verdict:
        """See `metakm.learning.statistics.verdict`."""
        return verdict(self.mean, self.ci95, self.seeds)


def difference(first: Line, second: Line) -> Difference:
    """Compare two methods of one setup, image by image over the seeds that both have.

    Where a run has no right.txt, the interval is the root of the summed squares of both lines' own.
    """
    common = sorted({row.seed for row in first.rows} & {row.seed for row in second.rows})
    a, b = first.right_of(common), second.right_of(common)
    if a is None or b is None:
        interval = math.hypot(first.plus_minus, second.plus_minus)
        return Difference(first.mean - second.mean, interval, min(len(first.rows), len(second.rows)))
    paired = paired_difference(a, b)
    return Difference(paired.mean, cast(float, paired.ci95), len(common))


def read_experiments(folder: str | Path) -> tuple[list[RecordedExperiment], list[str]]:
    """The rows of every `experiment.csv` below a folder, and what could not be read, by name.

    Raises:
        UserError: `folder` is not a folder.
    """
    folder, paths = ExperimentRow.files_below(folder)
    runs, problems = [], []
    for path in paths:
        try:
            row = ExperimentRow.read(path)
            right = read_right(path.parent, row.n_test)
            runs.append(_recorded(row, read_config_file(path.parent), right))
        except UserError as error:
            problems.append(f"{path.relative_to(folder).as_posix()}: {error}")
    return runs, problems


def _recorded(row: ExperimentRow, config: Mapping[str, Any] | None, right: Right | None) -> RecordedExperiment:
    if config is None:
        return RecordedExperiment(row, (("config.json", "missing"),), (("network", row.network),), right)
    told = (EXPERIMENT_EXECUTION_FIELDS | _IN_ROW | {f.name for f in fields(ExperimentRow)}) - {*_OF_METHOD}
    texts = {name: v if isinstance(v, str) else json.dumps(v) for name, v in config.items() if name not in told}
    texts |= {"start": row.start} if row.start else {}  # config.json has "auto", too
    shared = tuple(sorted((name, text) for name, text in texts.items() if name not in _OF_METHOD))
    own = tuple((n, texts[n]) for n in _OF_METHOD if n in texts and texts[n] != _USUAL.get(n))
    return RecordedExperiment(row, shared, own, right)


def lines_of(runs: Iterable[RecordedExperiment]) -> tuple[list[Line], list[str]]:
    """Group finished, tested runs that differ only in their seed; also return which runs are left out, and why.

    Runs that choose a learning rate (`--tune`) are only counted.
    """
    groups: dict[tuple[ComparableSetup, str, float, Settings], dict[int, RecordedExperiment]] = {}
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
            seeds[row.seed] = run
    lines = [Line(*key, tuple(seeds[s] for s in sorted(seeds))) for key, seeds in groups.items()]
    return lines, [*left_out, *([f"finished without a test (--tune): {tuned}"] if tuned else [])]


def setup_titles(setups: Iterable[ComparableSetup]) -> dict[ComparableSetup, str]:
    """A title for each setup, in the order of the titles; it names the settings in which those of a dataset differ."""
    setups, titles = list(setups), {}
    for setup in setups:
        differing = _differing([other.settings for other in setups if other.dataset == setup.dataset])
        titles[setup] = f"{setup}{_format_settings(setup.settings, differing)}"
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

"""From recorded runs to the cells of the table. Accuracies of runs are fractions, those of cells percent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from metakm.config.dataset_names import dataset_names
from metakm.learning.statistics import combined_interval, interval_over_seeds, interval_over_tasks, residual_interval
from metakm.table.collect import Changes, RecordedRun
from metakm.table.setting import Setting

_PUBLISHED_ORDER = ("maml", "anil", "km")  # the others follow by name
# These may change a number, but need not: reported below the table if they differ within a cell.
PROVENANCE = (
    "git_commit", "metakm_version", "torch_version", "device", "threads", "episodes_hash", "init_weights", "stopped",
)  # fmt: skip


@dataclass(frozen=True, order=True)
class Protocol:
    """How a strategy was trained and tested: a row of the table."""

    algo: str
    preset: str
    changes: Changes  # of the preset

    @property
    def label(self) -> str:
        """Such as `km (quick, precision bf16)`."""
        return (
            f"{self.algo} ({', '.join([self.preset, *(_format_change(name, value) for name, value in self.changes)])})"
        )

    @property
    def published(self) -> bool:
        """Whether this is the published protocol with nothing changed."""
        return self.preset == "paper" and not self.changes

    @property
    def order(self) -> tuple[object, ...]:
        """Sorts rows: strategies as published, the published protocol first, unchanged ones first."""
        rank = _PUBLISHED_ORDER.index(self.algo) if self.algo in _PUBLISHED_ORDER else len(_PUBLISHED_ORDER)
        return rank, self.algo, self.preset != "paper", self.preset, len(self.changes), self.changes


@dataclass(frozen=True)
class Cell:
    """One protocol in one setting: its runs, one per seed, and their summary, in percent."""

    setting: Setting
    protocol: Protocol
    runs: tuple[RecordedRun, ...]  # by seed
    mean: float  # over seeds, of the mean over tasks
    seeds_ci95: float | None  # half-width of the Student-t interval over seeds; None for one seed
    tasks_ci95: float | None  # half-width over tasks, of the mean over these seeds' models; None if not known
    residual_ci95: float | None  # what both contain; None for one seed, or if not known
    n_tasks: int  # of each run
    adapted_parameters: int | None  # None if the runs differ
    ratio_to_maml: float | None  # of adapted parameters; None without a MAML row on this backbone

    @property
    def algo(self) -> str:
        """The strategy."""
        return self.protocol.algo

    @property
    def preset(self) -> str:
        """The preset; `protocol.changes` has what was changed in it."""
        return self.protocol.preset

    @property
    def bn_mode(self) -> str:
        """Where batch statistics come from, the same for all runs of a protocol."""
        return self.runs[0].row.bn_mode

    @property
    def ci95(self) -> float | None:
        """Half-width of the 95 % interval over seeds and tasks combined; with one seed, over tasks only."""
        return combined_interval(self.seeds_ci95, self.tasks_ci95, self.residual_ci95)

    @property
    def n_seeds(self) -> int:
        """Number of runs in the mean."""
        return len(self.runs)

    @property
    def train_hours(self) -> float:
        """Wall time of meta-training, validation included: the mean over seeds."""
        return sum(run.row.train_seconds for run in self.runs) / len(self.runs) / 3600

    @property
    def title(self) -> str:
        """Protocol and setting."""
        return f"{self.protocol.label}: {self.setting.title}"


@dataclass(frozen=True)
class LeftOut:
    """A run that is in no cell."""

    run: RecordedRun
    reason: str


def build_cells(runs: Iterable[RecordedRun]) -> tuple[tuple[Cell, ...], tuple[LeftOut, ...]]:
    """Put each run in exactly one cell, or leave it out with a reason, whatever the order of `runs`.

    All cells of a setting use the same data: those of its first finished run.
    """
    groups: dict[tuple[Setting, Protocol], dict[int, RecordedRun]] = defaultdict(dict)
    data: dict[Setting, RecordedRun] = {}
    left_out = []
    for run in sorted(runs, key=lambda run: (run.row.started_at, run.name, run.row.run_id)):
        row = run.row
        setting = Setting(row.dataset, row.ways, row.shots)
        seeds = groups[setting, Protocol(row.algo, row.preset, run.changes)]
        if row.status != "done":
            left_out.append(LeftOut(run, f"status {row.status}"))
        elif (first := data.setdefault(setting, run)).row.split_hash != row.split_hash:
            reason = f"same dataset name as {first.name}, but different data (split_hash); make a table of each"
            left_out.append(LeftOut(run, reason))
        elif row.seed in seeds:
            reason = f"duplicate of {seeds[row.seed].name}: same protocol and seed; only the first to start is used"
            left_out.append(LeftOut(run, reason))
        else:
            seeds[row.seed] = run
    counts = _maml_counts(run for seeds in groups.values() for run in seeds.values())
    cells = [_cell(*key, tuple(seeds[s] for s in sorted(seeds)), counts) for key, seeds in groups.items() if seeds]
    cells.sort(key=lambda cell: (cell.setting, cell.protocol.order))
    return tuple(cells), tuple(sorted(left_out, key=lambda item: item.run.name))


def provenance_of(cell: Cell) -> dict[str, dict[str, list[str]]]:
    """For each provenance column in which the cell's runs differ, the names of runs by value."""
    return {c: found for c in (*PROVENANCE, "adapted_parameters") if len(found := names_by_value(cell.runs, c)) > 1}


def names_by_value(runs: Iterable[RecordedRun], column: str) -> dict[str, list[str]]:
    """Names of the runs that have each value of a column."""
    names = defaultdict(list)
    for run in runs:
        names[str(getattr(run.row, column))].append(run.name)
    return dict(sorted(names.items()))


def _cell(
    setting: Setting, protocol: Protocol, runs: tuple[RecordedRun, ...], maml: dict[tuple[Setting, str], set[int]]
) -> Cell:
    means = np.array([100 * (run.row.accuracy or 0.0) for run in runs])
    seeds_ci95 = interval_over_seeds(means)
    adapted = {run.row.adapted_parameters for run in runs}
    count = adapted.pop() if len(adapted) == 1 else None
    full = maml.get((setting, runs[0].row.backbone), set())
    ratio = count / min(full) if count is not None and len(full) == 1 and min(full) > 0 else None
    return Cell(
        setting, protocol, runs, float(means.mean()), seeds_ci95, *_tasks_ci95(runs), runs[0].row.n_tasks, count, ratio
    )


def _tasks_ci95(runs: tuple[RecordedRun, ...]) -> tuple[float | None, float | None]:
    """The interval over tasks of their means over seeds, for one run as in its row; and the `residual_interval`.

    Where the tasks of several are others or not known, the mean of the rows' intervals, which is rather too wide.
    """
    accuracies = [100 * run.accuracies for run in runs if run.accuracies is not None]
    if len(runs) > 1 and len(accuracies) == len(runs) and len({run.row.episodes_hash for run in runs}) == 1:
        by_task = np.mean(accuracies, axis=0)
        over_tasks = interval_over_tasks(by_task, len(dataset_names(runs[0].row.dataset)))
        return over_tasks, residual_interval(np.stack(accuracies))
    widths = [run.row.ci95 for run in runs if run.row.ci95 is not None]
    return (100 * sum(widths) / len(widths) if len(widths) == len(runs) else None), None


def _maml_counts(runs: Iterable[RecordedRun]) -> dict[tuple[Setting, str], set[int]]:
    """The number of parameters that MAML adapts without implicit modulation, by setting and backbone."""
    counts: dict[tuple[Setting, str], set[int]] = defaultdict(set)
    for run in runs:
        row = run.row
        if row.algo == "maml" and "implicit" not in dict(run.changes):
            counts[Setting(row.dataset, row.ways, row.shots), row.backbone].add(row.adapted_parameters)
    return counts


def _format_change(name: str, value: str) -> str:
    words = name.replace("_", "-")
    return {"true": words, "false": f"no {words}"}.get(value, f"{words} {value}")

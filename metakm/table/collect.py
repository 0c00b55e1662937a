"""Find and read the rows of runs below a folder, and check them against the files next to them."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from metakm.config import EXECUTION_FIELDS, NAMED_IN_ROW, PresetName, RunConfig
from metakm.config.dataset_names import dataset_names
from metakm.errors import UserError, unknown_name
from metakm.io.csv_file import read_csv
from metakm.learning.statistics import interval_over_tasks
from metakm.options import SHARED
from metakm.run.config_file import read_config_file
from metakm.run.row import COLUMNS, ResultRow
from metakm.table.older_rows import DEFAULTS, changes_of_older

Changes = tuple[tuple[str, str], ...]
_PROTOCOL = sorted({*COLUMNS} & {*SHARED, *(field.name for field in dataclasses.fields(RunConfig))})


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """One run, as read from its files."""

    row: ResultRow
    path: Path  # of its result.csv
    name: str  # of its folder, relative to the folder that was searched
    changes: Changes  # fields of the config that differ from the preset, with their values, sorted
    accuracies: npt.NDArray[np.float64] | None  # [n_tasks] from tasks.csv; None without it
    settings: Mapping[str, str]  # everything in the row and in config.json about the protocol
    configured: bool  # whether there is a config.json


@dataclass(frozen=True)
class Problem:
    """A result.csv that cannot be used."""

    path: Path
    name: str
    reason: str


@dataclass(frozen=True)
class Collection:
    """Everything found below a folder, sorted by name."""

    runs: tuple[RecordedRun, ...]
    problems: tuple[Problem, ...]


def read_runs(folder: str | Path) -> Collection:
    """Read every `result.csv` below `folder`; a file that is damaged, foreign or inconsistent with others is a problem.

    Raises:
        UserError: `folder` is not a folder.
    """
    folder, paths = ResultRow.files_below(folder)
    runs, problems = [], []
    for path in paths:
        name = path.parent.relative_to(folder).as_posix()
        try:
            runs.append(_read_run(path, name))
        except UserError as error:
            problems.append(Problem(path, name, str(error)))
    return Collection(_separate_by_settings(runs), tuple(problems))


def _read_run(path: Path, name: str) -> RecordedRun:
    row = ResultRow.read(path)
    _check_row(row)
    config = read_config_file(path.parent)
    if config is not None:
        _check_config(row, config)
    changes = {k: v for k, v in _changes(row, config).items() if k not in EXECUTION_FIELDS}
    if row.stopped and "patience" not in changes:  # by a callback, of which no setting tells
        changes["stopped_early"] = True
    accuracies = _read_tasks(path.parent / "tasks.csv", row)
    return RecordedRun(row, path, name, _sorted(changes), accuracies, _settings(row, config), config is not None)


def _check_row(row: ResultRow) -> None:
    """Raise UserError for a row that no run writes."""
    if row.preset not in get_args(PresetName):
        raise unknown_name("column preset", row.preset, get_args(PresetName))
    for name in ("ways", "shots", "seed", "adapted_parameters", "total_parameters", "n_tasks"):
        if getattr(row, name) < 0:
            raise UserError(f"Expected column {name} to be 0 or more, got {getattr(row, name)}; was the file changed?")
    for name in ("accuracy", "val_accuracy", "ci95"):
        value = getattr(row, name)
        if value is not None and not 0 <= value <= (1 if name != "ci95" else np.inf):
            raise UserError(
                f"Expected column {name} to be a fraction, got {value}; tables take accuracies alone, no metric of a "
                "strategy's own"
            )
    if row.status == "done" and (row.accuracy is None or row.ci95 is None or row.n_tasks < 2):
        raise UserError("Expected a run that is done to have accuracy, ci95 and 2 or more n_tasks, got less")


def _check_config(row: ResultRow, config: Mapping[str, Any]) -> None:
    """Raise UserError if the run's config contradicts its row."""
    said = {name: getattr(row, name) for name in COLUMNS if name not in EXECUTION_FIELDS}
    if row.status == "done":
        said["eval_tasks"] = row.n_tasks
    for name in sorted(said.keys() & config.keys()):
        if config[name] != said[name]:
            raise UserError(f"Expected {name} {config[name]!r} as in config.json, got {said[name]!r} in the row")


def _changes(row: ResultRow, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings that the run changed of its preset, as its row says or, for an older row, as can be inferred."""
    if row.changes is None:
        return changes_of_older(row, config)
    try:
        changes = json.loads(row.changes)
    except (ValueError, RecursionError):
        changes = None
    if not isinstance(changes, dict) or not all(
        _as_text(part).isprintable() for item in changes.items() for part in item
    ):
        raise UserError(
            f"Expected column changes to be a JSON object of printable texts, got {row.changes!r:.200}; "
            "was the file changed?"
        )
    for name, value in changes.items():
        if config is not None and (name not in config or config[name] != value):
            told = repr(config[name]) if name in config else "none"
            raise UserError(f"Expected {name} {told} as in config.json, got {value!r} in the row's changes")
    return changes


def _settings(row: ResultRow, config: Mapping[str, Any] | None) -> dict[str, str]:
    """Everything in a run's row and config about its protocol."""
    told = {name: getattr(row, name) for name in _PROTOCOL} | {"eval_tasks": row.n_tasks}
    values = told if config is None else DEFAULTS | told | dict(config)
    values = {name: value for name, value in values.items() if name not in NAMED_IN_ROW | EXECUTION_FIELDS}
    return {name: _as_text(value) for name, value in values.items()}


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _separate_by_settings(runs: Sequence[RecordedRun]) -> tuple[RecordedRun, ...]:
    """Name the settings in which runs with the same preset and changes differ: the preset has changed in between."""
    groups = defaultdict(list)
    for run in runs:
        if run.row.status == "done":
            row = run.row
            groups[row.dataset, row.ways, row.shots, row.algo, row.preset, run.changes].append(run)
    differing: dict[RecordedRun, set[str]] = {}
    for group in groups.values():
        values = defaultdict(set)
        for run in group:
            for name, text in run.settings.items():
                values[name].add(text)
        names = {name for name, texts in values.items() if len(texts) > 1}
        differing |= dict.fromkeys(group, names) if names else {}
    return tuple(
        dataclasses.replace(run, changes=_sorted({**dict(run.changes), **{n: run.settings[n] for n in names}}))
        if (names := differing.get(run, set()) & run.settings.keys())
        else run
        for run in runs
    )


def _sorted(changes: Mapping[str, Any]) -> Changes:
    return tuple(sorted((name, _as_text(value)) for name, value in changes.items()))


def _read_tasks(path: Path, row: ResultRow) -> npt.NDArray[np.float64] | None:
    """Accuracies `[n_tasks]` in the order of the episodes, checked against the row."""
    if row.status != "done" or not path.exists():
        return None
    lines = read_csv(path)
    try:
        episodes = [int(line["episode"]) for line in lines]
        accuracies = np.array([float(line["accuracy"]) for line in lines])
    except (KeyError, ValueError) as error:
        raise UserError(f"Expected tasks.csv to have numbers in columns episode and accuracy, got: {error}") from error
    if episodes != list(range(row.n_tasks)):
        wrong = next((e for i, e in enumerate(episodes) if e != i), None)
        instead = f"{len(episodes)} episodes" if wrong is None else f"episode {wrong} out of order"
        raise UserError(f"Expected tasks.csv to have episodes 0 to {row.n_tasks - 1} in order, got {instead}")
    if not ((accuracies >= 0) & (accuracies <= 1)).all():
        raise UserError(
            f"Expected tasks.csv to have accuracies from 0 to 1, got {accuracies.min():g} to {accuracies.max():g}"
        )
    widths = [interval_over_tasks(accuracies, count) for count in (len(dataset_names(row.dataset)), 1)]  # 1: before 0.3
    for name, values in {"accuracy": [float(accuracies.mean())], "ci95": widths}.items():
        if not np.isclose(values, getattr(row, name), rtol=0, atol=1e-9).any():
            raise UserError(f"Expected tasks.csv to have the row's {name} {getattr(row, name)}, got {values[0]}")
    return accuracies

"""Find and read the rows of runs below a folder, and check them against the files beside them."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from metakm.config import EXECUTION_FIELDS, PresetName, RunConfig
from metakm.errors import UserError, unknown_name
from metakm.io.files import expanded
from metakm.learning.statistics import interval_over_tasks
from metakm.presets import preset_config
from metakm.run.row import COLUMNS, ResultRow

# What a cell of the table or a run's own seed says; every other field of the config belongs to the protocol.
_NAMED_ELSEWHERE = frozenset({"algo", "dataset", "ways", "shots", "preset", "seed"})
_DEFAULTS = {f.name: f.default for f in dataclasses.fields(RunConfig) if f.default is not dataclasses.MISSING}
Changes = tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """One run as its files have it."""

    row: ResultRow
    path: Path  # of its result.csv
    name: str  # of its folder, from the folder that was searched
    changes: Changes  # fields of the config that are not the preset's, with their values, sorted
    accuracies: npt.NDArray[np.float64] | None  # [n_tasks] from tasks.csv; None where there is none


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
    """Read every `result.csv` below `folder`; a file that is damaged, foreign or at odds with others is a problem.

    Raises:
        UserError: `folder` is no folder.
    """
    folder = expanded(folder, "the folder of results")
    if not folder.is_dir():
        raise UserError(f"Expected a folder of results, got {folder}; give the --out of your runs")
    runs, problems = [], []
    for path in sorted(folder.rglob("result.csv")):
        name = path.parent.relative_to(folder).as_posix()
        try:
            runs.append(_read_run(path, name))
        except UserError as error:
            problems.append(Problem(path, name, str(error)))
    return Collection(tuple(runs), tuple(problems))


def _read_run(path: Path, name: str) -> RecordedRun:
    row = _read_row(path)
    _check(row)
    config = read_config(path.parent / "config.json")
    if config is not None:
        _check_config(row, config)
    return RecordedRun(row, path, name, _changes(row, config), _read_tasks(path.parent / "tasks.csv", row))


def _read_row(path: Path) -> ResultRow:
    lines = read_csv(path)
    if len(lines) != 1:
        raise UserError(f"Expected one row, got {len(lines)}; give each run its own folder")
    return ResultRow.from_cells(lines[0])


def read_csv(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file below its header, as the text of each column."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # Excel writes a byte-order mark
            header, *lines = list(csv.reader(file, strict=True)) or [[]]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"Expected {path.name} to be a CSV file that can be read, got: {error}") from error
    if len(set(header)) != len(header):
        raise UserError(f"Expected different columns in {path.name}, got one twice; was the file changed?")
    for number, line in enumerate(lines, start=2):
        if len(line) != len(header):
            raise UserError(
                f"Expected {len(header)} values in each line of {path.name}, got {len(line)} in line {number}; "
                "is it cut off?"
            )
    return [dict(zip(header, line, strict=True)) for line in lines]


def _check(row: ResultRow) -> None:
    """Raise UserError for a row that no run writes."""
    if row.preset not in get_args(PresetName):
        raise unknown_name("column preset", row.preset, get_args(PresetName))
    for name in ("ways", "shots", "seed", "adapted_parameters", "total_parameters", "n_tasks"):
        if getattr(row, name) < 0:
            raise UserError(f"Expected column {name} to be 0 or more, got {getattr(row, name)}; was the file changed?")
    for name in ("accuracy", "val_accuracy", "ci95"):
        value = getattr(row, name)
        if value is not None and not 0 <= value <= (1 if name != "ci95" else np.inf):
            raise UserError(f"Expected column {name} to be a fraction, got {value}; was the file changed?")
    if row.status == "done" and (row.accuracy is None or row.ci95 is None or row.n_tasks < 2):
        raise UserError("Expected a run that is done to have accuracy, ci95 and 2 or more n_tasks, got less")


def read_config(path: Path) -> dict[str, Any] | None:
    """The `config.json` of a run; None where there is none."""
    if not path.exists():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"Expected config.json to be JSON, got {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"Expected config.json to be an object, got {type(config).__name__}")
    return config


def _check_config(row: ResultRow, config: Mapping[str, Any]) -> None:
    """Raise UserError if the run's config says otherwise than its row."""
    said = {name: getattr(row, name) for name in COLUMNS if name not in EXECUTION_FIELDS}
    if row.status == "done":
        said["eval_tasks"] = row.n_tasks
    for name in sorted(said.keys() & config.keys()):
        if config[name] != said[name]:
            raise UserError(f"Expected {name} {config[name]!r} as in config.json, got {said[name]!r} in the row")


def _changes(row: ResultRow, config: Mapping[str, Any] | None) -> Changes:
    """What the run's protocol changes in its preset.

    Without a config, the row and its run_id are all there is to tell by, and that itself is a change. A field with a
    default that the config lacks came into being after the run, which did as its default does.
    """
    preset = preset_config(row.preset, row.algo, row.dataset, row.ways, row.shots).identity()
    own = {name: getattr(row, name) for name in COLUMNS if name in preset} | {"eval_tasks": row.n_tasks}
    if config is None:
        variants = re.search(rf"-{re.escape(row.algo)}-(.+)-{row.preset}-seed\d+-[0-9a-f]+$", row.run_id)
        own["config.json"] = "missing" + (f" ({variants[1]})" if variants else "")
    else:
        own = dict.fromkeys(preset, "unknown") | _DEFAULTS | own | dict(config)
    own = {name: value for name, value in own.items() if name not in _NAMED_ELSEWHERE | EXECUTION_FIELDS}
    changed = {name: value for name, value in own.items() if preset.get(name) != value}
    return tuple(sorted((name, v if isinstance(v, str) else json.dumps(v)) for name, v in changed.items()))


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
        raise UserError(f"Expected tasks.csv to have episodes 0 to {row.n_tasks - 1} in order, got others")
    if not ((accuracies >= 0) & (accuracies <= 1)).all():
        raise UserError("Expected tasks.csv to have accuracies from 0 to 1, got others")
    found = {"accuracy": float(accuracies.mean()), "ci95": interval_over_tasks(accuracies)}
    for name, value in found.items():
        if not np.isclose(value, getattr(row, name), rtol=0, atol=1e-9):
            raise UserError(f"Expected tasks.csv to have the row's {name} {getattr(row, name)}, got {value}")
    return accuracies

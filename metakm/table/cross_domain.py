"""Runs that were tested on other data than they were trained on, beside the same runs on their own data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from metakm.table.cells import Cell, LeftOut, build_cells
from metakm.table.collect import RecordedRun


@dataclass(frozen=True)
class CrossDomainResult:
    """What was trained on one setting, as tested on several; `tested_as` is what was done differently."""

    trained_on: str
    tested_as: str
    cells: tuple[Cell, ...]


def build_cross_domain(runs: Iterable[RecordedRun]) -> tuple[tuple[CrossDomainResult, ...], tuple[LeftOut, ...]]:
    """Sort the rows of `metakm evaluate --dataset` by what was trained, with the rows of these protocols' own tests."""
    groups: dict[tuple[str, str], list[RecordedRun]] = defaultdict(list)
    own: dict[str, list[RecordedRun]] = defaultdict(list)
    for run in runs:
        row = run.row
        if row.trained_on:
            groups[row.trained_on, row.tested_as].append(run)
        elif row.status == "done":
            own[f"{row.dataset}-{row.ways}w{row.shots}s"].append(run)
    found, left_out = [], []
    for (trained_on, tested_as), group in sorted(groups.items()):
        protocols = {(run.row.algo, run.row.preset, run.changes) for run in group}
        beside = [run for run in own[trained_on] if (run.row.algo, run.row.preset, run.changes) in protocols]
        cells, refused = build_cells([*group, *([] if tested_as else beside)])
        found.append(CrossDomainResult(trained_on, tested_as, cells))
        left_out += [each for each in refused if each.run.row.trained_on]  # the others are in the table's own list
    return tuple(found), tuple(left_out)

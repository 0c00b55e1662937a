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
    split_hash: str  # of the data of the training; empty if not known
    tested_as: str
    cells: tuple[Cell, ...]


def build_cross_domain(runs: Iterable[RecordedRun]) -> tuple[tuple[CrossDomainResult, ...], tuple[LeftOut, ...]]:
    """Sort the rows of `metakm evaluate --dataset` by what was trained, with the rows of these protocols' own tests.

    A row of metakm before 0.3 does not tell the data of its training: they are taken to be those of the own tests,
    where these all have the same.
    """
    own: dict[str, list[RecordedRun]] = defaultdict(list)
    moved = []
    for run in runs:
        row = run.row
        if row.trained_on:
            moved.append(run)
        elif row.status == "done":
            own[f"{row.dataset}-{row.ways}w{row.shots}s"].append(run)
    groups: dict[tuple[str, str, str], list[RecordedRun]] = defaultdict(list)
    for run in moved:
        row = run.row
        hashes = {each.row.split_hash for each in own[row.trained_on]}
        split_hash = row.trained_split_hash or (hashes.pop() if len(hashes) == 1 else "")
        groups[row.trained_on, split_hash, row.tested_as].append(run)
    found, left_out = [], []
    for (trained_on, split_hash, tested_as), group in sorted(groups.items()):
        protocols = {(run.row.algo, run.row.preset, run.changes) for run in group}
        beside = [
            run
            for run in own[trained_on]
            if run.row.split_hash == split_hash and (run.row.algo, run.row.preset, run.changes) in protocols
        ]
        cells, refused = build_cells([*group, *([] if tested_as else beside)])
        found.append(CrossDomainResult(trained_on, split_hash, tested_as, cells))
        left_out += [each for each in refused if each.run.row.trained_on]  # the others are in the table's own list
    return tuple(found), tuple(left_out)

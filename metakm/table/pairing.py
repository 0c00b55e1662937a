"""Paired comparison of two cells: strategies see the same meta-test episodes, so differences are taken per task."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from metakm.config.dataset_names import dataset_names
from metakm.errors import UserError, unknown_name
from metakm.learning.statistics import (
    PairedDifference,
    Verdict,
    paired_difference,
    seeds_to_tell,
    verdict,
)
from metakm.table.cells import PROVENANCE, Cell, names_by_value
from metakm.table.collect import RecordedRun

# Settings that every preset has in common for all strategies.
_ALIKE = ("queries", "test_queries", "meta_batch", "iterations", "schedule", "ema", "select", "val_tasks")


@dataclass(frozen=True)
class Comparison:
    """`first - second` in percentage points, over the seeds that both have, with half-widths of 95 % intervals."""

    first: Cell
    second: Cell
    seeds: tuple[int, ...]
    paired: PairedDifference
    caveats: tuple[str, ...]  # what else differs between them

    @property
    def difference(self) -> float:
        """The mean over these seeds and all tasks."""
        return self.paired.mean

    @property
    def tasks_ci95(self) -> float | None:
        """Half-width over tasks, of the difference averaged over these seeds' models."""
        return self.paired.tasks_ci95

    @property
    def seeds_ci95(self) -> float | None:
        """Half-width over seeds; None for one seed."""
        return self.paired.seeds_ci95

    @property
    def ci95(self) -> float | None:
        """Half-width over seeds and tasks combined; with one seed, over tasks only."""
        return self.paired.ci95

    @property
    def verdict(self) -> Verdict:
        """See `metakm.learning.statistics.verdict`."""
        return verdict(self.difference, self.ci95, len(self.seeds))

    @property
    def seeds_to_tell(self) -> int | None:
        """About how many seeds the difference would need to exceed its interval; None if it does, or if unknown."""
        if self.verdict != "within noise":
            return None
        return seeds_to_tell(self.paired, len(self.seeds))


def compare(first: Cell, second: Cell) -> Comparison:
    """Compare two cells of one setting.

    Raises:
        UserError: they cannot be paired: other settings, other meta-test episodes, no seed in common, no tasks.csv.
    """
    names = f"{first.protocol.label} and {second.protocol.label}"
    if first.setting != second.setting:
        raise UserError(f"Expected cells of one setting, got {first.title} and {second.title}; compare within one")
    hashes = names_by_value((*first.runs, *second.runs), "episodes_hash")
    if len(hashes) > 1:
        listed = "; ".join(f"{value}: {', '.join(runs)}" for value, runs in hashes.items())
        raise UserError(
            f"Expected {names} in {first.setting.title} to have one episodes_hash, got {listed}; "
            "only runs with the same meta-test episodes can be paired"
        )
    ours, theirs = ({run.row.seed: run for run in cell.runs} for cell in (first, second))
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        raise UserError(
            f"Expected {names} in {first.setting.title} to have a seed in common, got {sorted(ours)} and "
            f"{sorted(theirs)}; run one with the seeds of the other"
        )
    paired = paired_difference(
        _accuracies(ours, seeds), _accuracies(theirs, seeds), len(dataset_names(first.setting.dataset))
    )
    caveats = _caveats(first, second, [ours[s] for s in seeds], [theirs[s] for s in seeds])
    return Comparison(first, second, tuple(seeds), paired, caveats)


def comparisons_between(
    cells: Iterable[Cell], first: str, second: str
) -> tuple[tuple[Comparison, ...], tuple[str, ...]]:
    """Compare two strategies in every setting that has both; also return why comparisons were refused.

    Args:
        cells: of the table.
        first: a strategy, such as `km`, for all of its protocols, or the label of one of them, such as
            `km (quick, precision bf16)`.
        second: likewise. Two strategies are compared where preset and changes are the same; with a label, a
            differing protocol is a caveat.

    Raises:
        UserError: an unknown name, or no comparison is possible.
    """
    cells = tuple(cells)
    strategies = {cell.algo for cell in cells}
    known = strategies | {cell.protocol.label for cell in cells}
    for name in (first, second):
        if name not in known:
            raise unknown_name("a measured strategy or row", name, known)
    free = not {first, second} <= strategies
    found, refused = [], []
    for setting in sorted({cell.setting for cell in cells}):
        ours, theirs = ([c for c in cells if c.setting == setting and _has_name(c, name)] for name in (first, second))
        pairs = [(a, b) for a in ours for b in theirs if a is not b and (free or same_protocol(a, b))]
        if (ours or theirs) and not pairs:
            rows = ", ".join(cell.protocol.label for cell in (*ours, *theirs))
            refused.append(
                f"Expected {first} and {second} with one protocol in {setting.title}, got {rows}; "
                "to compare across protocols, name rows in full"
            )
        for pair in pairs:
            try:
                found.append(compare(*pair))
            except UserError as error:
                refused.append(str(error))
    if not found:
        raise UserError("\n".join(refused))
    return tuple(found), tuple(refused)


def same_protocol(first: Cell, second: Cell) -> bool:
    """Whether preset and changes are the same."""
    return (first.preset, first.protocol.changes) == (second.preset, second.protocol.changes)


def peer_of(cell: Cell, algo: str, cells: Iterable[Cell]) -> Cell | None:
    """The cell of another strategy in the same setting with the same protocol."""
    return next(
        (c for c in cells if c.algo == algo != cell.algo and c.setting == cell.setting and same_protocol(c, cell)), None
    )


def _has_name(cell: Cell, name: str) -> bool:
    return name in (cell.algo, cell.protocol.label)


def _accuracies(runs: dict[int, RecordedRun], seeds: list[int]) -> npt.NDArray[np.float64]:
    """Accuracies in percent, `[S, n]`, of the runs with these seeds."""
    rows = []
    for seed in seeds:
        if (accuracies := runs[seed].accuracies) is None:
            raise UserError(f"Expected tasks.csv beside {runs[seed].name}/result.csv, got none; pairs need every task")
        rows.append(100 * accuracies)
    return np.stack(rows)


def _preset_changes(first: RecordedRun, second: RecordedRun) -> list[str]:
    """Shared preset settings that differ between the runs of two strategies with the same changes."""
    pairs = ((name, first.settings.get(name), second.settings.get(name)) for name in _ALIKE)
    return [f"the preset's value of {name}: {a} against {b}" for name, a, b in pairs if a and b and a != b]


def _shorten(value: str) -> str:
    """With a commit's first twelve digits alone."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28}\b", r"\1", value)


def _caveats(first: Cell, second: Cell, ours: list[RecordedRun], theirs: list[RecordedRun]) -> tuple[str, ...]:
    found = []
    if not same_protocol(first, second):
        found.append(f"protocols differ: {first.protocol.label} against {second.protocol.label}")
    else:
        found += _preset_changes(ours[0], theirs[0])
    for cell, used in ((first, ours), (second, theirs)):
        if unused := [run.row.seed for run in cell.runs if run not in used]:
            found.append(f"seeds of {cell.protocol.label} without a partner: {', '.join(map(str, unused))}")
    for column in PROVENANCE:
        a, b = (names_by_value(runs, column).keys() for runs in (ours, theirs))
        if a != b:
            found.append(f"{column}: {', '.join(map(_shorten, a))} against {', '.join(map(_shorten, b))}")
    return tuple(found)

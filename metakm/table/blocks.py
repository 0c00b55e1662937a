"""Table III: published and measured rows in blocks, what the paper claims, and the list below."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metakm.errors import UserError, unknown_name
from metakm.table.cells import Cell, LeftOut, Protocol, build_cells, provenance_of
from metakm.table.collect import Collection, Problem
from metakm.table.cross_domain import CrossDomainResult, build_cross_domain
from metakm.table.pairing import Comparison, compare, peer_of
from metakm.table.published import KM_CLAIMED_ABOVE, Published, published_results
from metakm.table.setting import TABLE3, Setting


@dataclass(frozen=True)
class Row:
    """A published method (`protocol` is None) or a measured protocol; a setting without a cell stays empty."""

    label: str
    protocol: Protocol | None
    cells: Mapping[Setting, Published | Cell]


@dataclass(frozen=True)
class Block:
    """Rows over the same settings."""

    title: str
    settings: tuple[Setting, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Claim:
    """KM against ANIL or MAML in one setting of Table III: what the paper says, what was measured."""

    setting: Setting
    peer: str
    claimed: bool  # the paper says that KM is above
    measured: tuple[Comparison, ...]  # one for each protocol that has both


@dataclass(frozen=True)
class RefusedComparison:
    """A cell that could not be compared with a peer, and why."""

    first: Cell
    reason: str


@dataclass(frozen=True)
class Table:
    """Everything that is rendered."""

    blocks: tuple[Block, ...]
    baseline: str
    comparisons: tuple[Comparison, ...]  # of cells with the baseline's, and of KM with ANIL's and MAML's
    refused: tuple[RefusedComparison, ...]
    claims: tuple[Claim, ...]
    left_out: tuple[LeftOut, ...]
    problems: tuple[Problem, ...]
    hidden: int = 0  # number of measured rows that a selection left out, see selection.py
    cross_domain: tuple[CrossDomainResult, ...] = ()  # runs tested on other data, which are in no block

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The measured ones, in the table's order."""
        found = (row.cells.get(s) for block in self.blocks for s in block.settings for row in block.rows)
        return tuple(cell for cell in found if isinstance(cell, Cell))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the measured cells must know beside their numbers."""
        return (*notes_of(self.cells), *(f"not compared: {each.reason}" for each in self.refused))

    def comparison(self, cell: Cell, algo: str) -> Comparison | None:
        """The comparison of a cell with the cell of `algo`; None if there is none."""
        return next((c for c in self.comparisons if c.first is cell and c.second.algo == algo), None)


def build_table(collection: Collection, baseline: str = "anil") -> Table:
    """Lay out Table III, then every other measured setting in a block of its own.

    Args:
        collection: from `read_runs`.
        baseline: the strategy to which the others are compared.

    Raises:
        UserError: an unknown baseline.
    """
    cells, left_out = build_cells(run for run in collection.runs if not run.row.trained_on)
    cross_domain, of_cross_domain = build_cross_domain(collection.runs)
    known = {"maml", "anil", "km"} | {cell.algo for cell in cells}
    if baseline not in known:
        raise unknown_name("--baseline", baseline, known)
    comparisons, refused = _compare_all(cells, baseline)
    others = sorted({cell.setting for cell in cells} - set(TABLE3))
    published = tuple(
        Row(method, None, {p.setting: p for p in published_results() if p.method == method})
        for method in dict.fromkeys(p.method for p in published_results())
    )
    blocks = [Block("Table III", TABLE3, (*published, *_rows(cells, TABLE3)))]
    blocks += [Block(s.title, (s,), _rows(cells, (s,))) for s in others]
    return Table(
        blocks=tuple(blocks),
        baseline=baseline,
        comparisons=comparisons,
        refused=refused,
        claims=_claims(comparisons),
        left_out=(*left_out, *of_cross_domain),
        problems=collection.problems,
        cross_domain=cross_domain,
    )


def _rows(cells: tuple[Cell, ...], settings: tuple[Setting, ...]) -> tuple[Row, ...]:
    here = [cell for cell in cells if cell.setting in settings]
    protocols = sorted({cell.protocol for cell in here}, key=lambda protocol: protocol.order)
    return tuple(Row(p.label, p, {c.setting: c for c in here if c.protocol == p}) for p in protocols)


def _compare_all(
    cells: tuple[Cell, ...], baseline: str
) -> tuple[tuple[Comparison, ...], tuple[RefusedComparison, ...]]:
    """Comparisons with the peers in the same setting and protocol, and why others were impossible."""
    found, refused = [], []
    for cell in cells:
        for algo in sorted({baseline} | ({"anil", "maml"} if cell.algo == "km" else set())):
            peer = peer_of(cell, algo, cells)
            if peer is not None:
                try:
                    found.append(compare(cell, peer))
                except UserError as error:
                    refused.append(RefusedComparison(cell, str(error)))
    return tuple(found), tuple(refused)


def _claims(comparisons: tuple[Comparison, ...]) -> tuple[Claim, ...]:
    return tuple(
        Claim(
            setting,
            peer,
            (peer, setting) in KM_CLAIMED_ABOVE,
            tuple(
                c for c in comparisons if c.first.algo == "km" and c.second.algo == peer and c.first.setting == setting
            ),
        )
        for setting in TABLE3
        for peer in ("anil", "maml")
    )


def notes_of(cells: Sequence[Cell]) -> list[str]:
    """What a reader of the cells must know in addition to their numbers, by name."""
    notes = []
    for cell in cells:
        for column, names in provenance_of(cell).items():
            listed = "; ".join(f"{value or 'none'}: {', '.join(runs)}" for value, runs in names.items())
            notes.append(f"{cell.title}: {column} differs ({listed})")
        for run in cell.runs:
            if not run.row.git_commit or re.search("-dirty|unknown", run.row.git_commit):
                notes.append(f"{run.name}: made from {run.row.git_commit or 'no known commit'}")
            if run.accuracies is None:
                notes.append(f"{run.name}: no tasks.csv, so it is in no paired comparison")
            if run.row.status == "done" and not run.configured:
                notes.append(f"{run.name}: no config.json, so not all of its settings are known")
    for setting in sorted({cell.setting for cell in cells}):
        for algo in sorted({cell.algo for cell in cells if cell.setting == setting}):
            labels = [c.protocol.label for c in cells if (c.setting, c.algo) == (setting, algo)]
            if len(labels) > 1:
                notes.append(
                    f"{algo}, {setting.title}: {len(labels)} protocols, each its own row ({'; '.join(labels)})"
                )
    return notes

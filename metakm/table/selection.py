"""Select the rows to show: by default those of one protocol in the paper's settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from metakm.errors import unknown_name
from metakm.table.blocks import Block, Row, Table
from metakm.table.cells import Cell

MAIN_PRESET = "table3"
MIN_TASKS = 100
"""With fewer meta-test tasks, a cell counts as a trial."""

# The first of these that matches any cell selects the cells, so that a folder of trials is not an empty table.
_PROTOCOLS: tuple[Callable[[Cell], bool], ...] = (
    lambda cell: cell.n_tasks >= MIN_TASKS and cell.preset == MAIN_PRESET and not cell.protocol.changes,
    lambda cell: cell.n_tasks >= MIN_TASKS and not cell.protocol.changes,
    lambda cell: cell.n_tasks >= MIN_TASKS,
    lambda _: True,
)


def main_table(table: Table, paper_columns: bool = False) -> Table:
    """Only Table III, with one row per strategy and preset.

    Rows are those of preset `table3` without changes, if there are any; else of other presets without changes; else all
    with enough tasks; else all. A column without a measurement is left out unless `paper_columns`. A folder without
    any of the paper's settings shows its own.
    """
    paper, *others = table.blocks
    blocks = [paper] if _measured([paper]) or not _measured(others) else others
    shown = next(filter(None, ([c for c in _measured(blocks) if fits(c)] for fits in _PROTOCOLS)), [])
    kept = [_with_cells(block, shown, paper_columns and block is paper) for block in blocks]
    rows = sum(len(_measured_rows(block)) for block in kept)
    hidden = sum(len(_measured_rows(block)) for block in table.blocks) - rows
    return _with_blocks(table, tuple(block for block in kept if block.rows), hidden)


def select_strategies(table: Table, algos: Sequence[str]) -> Table:
    """The rows of some strategies, published and measured.

    Raises:
        UserError: a strategy without a row.
    """
    known = {_algo(row) for block in table.blocks for row in block.rows}
    known |= {cell.algo for result in table.cross_domain for cell in result.cells}
    for algo in algos:
        if algo not in known:
            raise unknown_name("--only", algo, known)
    blocks = [
        dataclasses.replace(block, rows=tuple(row for row in block.rows if _algo(row) in algos))
        for block in table.blocks
    ]
    cross_domain = (
        dataclasses.replace(result, cells=tuple(cell for cell in result.cells if cell.algo in algos))
        for result in table.cross_domain
    )
    table = dataclasses.replace(table, cross_domain=tuple(result for result in cross_domain if result.cells))
    return _with_blocks(table, (blocks[0], *(block for block in blocks[1:] if block.rows)), table.hidden)


def sort_by_accuracy(table: Table) -> Table:
    """The measured rows of each block by accuracy in its first column, then in the next; published ones stay above."""
    blocks = []
    for block in table.blocks:
        published = (row for row in block.rows if row.protocol is None)
        blocks.append(dataclasses.replace(block, rows=(*published, *sorted(_measured_rows(block), key=_rank(block)))))
    return dataclasses.replace(table, blocks=tuple(blocks))


def _rank(block: Block) -> Callable[[Row], list[float]]:
    """Sort key of measured rows; a row without a cell in the column comes last."""

    def rank(row: Row) -> list[float]:
        cells = (row.cells.get(setting) for setting in block.settings)
        return [-cell.mean if isinstance(cell, Cell) else 0.0 for cell in cells]

    return rank


def _with_cells(block: Block, shown: Sequence[Cell], every_column: bool) -> Block:
    """The block with the selected cells. Empty columns are dropped unless all are empty or all are wanted."""
    measured = {cell.setting for cell in shown}
    settings = tuple(s for s in block.settings if s in measured or every_column or not shown)
    rows = []
    for row in block.rows:
        cells = {s: c for s, c in row.cells.items() if s in settings and (row.protocol is None or c in shown)}
        if cells:
            rows.append(dataclasses.replace(row, cells=cells))
    return dataclasses.replace(block, settings=settings, rows=tuple(rows))


def _with_blocks(table: Table, blocks: tuple[Block, ...], hidden: int) -> Table:
    """The table with other blocks, and only the remarks about their cells."""
    shown = _measured(blocks)
    settings = {setting for block in blocks for setting in block.settings}
    claims = [claim for claim in table.claims if claim.setting in settings]
    return dataclasses.replace(
        table,
        blocks=blocks,
        comparisons=tuple(c for c in table.comparisons if c.first in shown),
        claims=tuple(
            dataclasses.replace(claim, measured=tuple(c for c in claim.measured if c.first in shown))
            for claim in claims
        ),
        refused=tuple(each for each in table.refused if each.first in shown),
        hidden=hidden,
    )


def _measured(blocks: Sequence[Block]) -> list[Cell]:
    return [cell for block in blocks for row in block.rows for cell in row.cells.values() if isinstance(cell, Cell)]


def _measured_rows(block: Block) -> list[Row]:
    return [row for row in block.rows if row.protocol is not None]


def _algo(row: Row) -> str:
    return row.label.split()[0].lower() if row.protocol is None else row.protocol.algo

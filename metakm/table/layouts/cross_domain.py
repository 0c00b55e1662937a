"""What was trained on one setting and tested on others: a line for each strategy, a column for each test."""

from __future__ import annotations

from metakm.table.blocks import Table
from metakm.table.cells import Cell
from metakm.table.cross_domain import CrossDomainResult
from metakm.table.grids import Grid, Layout, TitledList
from metakm.table.layouts.registry import register_table_layout
from metakm.table.setting import Setting


@register_table_layout("cross-domain")
def layout_cross_domain(table: Table) -> Layout:
    """Train x test: runs tested on other data by `metakm evaluate --dataset`, beside their own tests."""
    settings = sorted({cell.setting for result in table.cross_domain for cell in result.cells})
    header = ("Trained on", "Method", *(setting.title for setting in settings))
    lines = tuple(line for result in table.cross_domain for line in _lines(result, settings))
    left = tuple(f"{each.run.name}: {each.reason}" for each in table.left_out if each.run.row.trained_on)
    said = _NOTES if lines else (*_NONE, *_NOTES)
    title = "Trained on one dataset, tested on others: accuracy, %"
    listings = [TitledList("Remarks", said), *([TitledList("Runs left out", left)] if left else [])]
    return Layout((Grid(title, header, lines),), tuple(listings))


def _lines(result: CrossDomainResult, settings: list[Setting]) -> list[tuple[str, ...]]:
    how = " ".join(_TESTED_AS[word] for word in result.tested_as.split())
    trained = f"{result.trained_on}, tested {how}" if how else result.trained_on
    protocols = sorted({cell.protocol for cell in result.cells}, key=lambda protocol: protocol.order)
    found = {(cell.protocol, cell.setting): cell for cell in result.cells}
    return [
        (trained, protocol.label, *(_text(found.get((protocol, setting))) for setting in settings))
        for protocol in protocols
    ]


def _text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    width = "" if cell.ci95 is None else f" ± {cell.ci95:.2f}"
    return f"{cell.mean:.2f}{width} ({cell.n_seeds})"


_TESTED_AS = {"grey": "in grey", "head": "with the head alone adapted"}
_NOTES = (
    "± is the 95 % interval, over seeds (Student-t) and meta-test tasks in quadrature; with one seed over tasks alone. "
    "The number of seeds is in parentheses.",
    "Within a column, all strategies are tested on the same tasks. The column of the training dataset has the run's "
    "own meta-test, on classes that it had not seen.",
)
_NONE = ("No run was tested on another dataset yet; python -m metakm evaluate RUN --dataset NAME does that.",)

"""What was trained on one setting and tested on others: a line for each strategy, a column for each test."""

from __future__ import annotations

from collections import defaultdict

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
    trained = {(result.trained_on, result.split_hash) for result in table.cross_domain}
    several = len(trained) > len({name for name, _ in trained})
    lines = tuple(line for result in table.cross_domain for line in _lines(result, settings, several))
    left = tuple(f"{each.run.name}: {each.reason}" for each in table.left_out if each.run.row.trained_on)
    said = (*(() if lines else _NONE), _INTERVALS, *_tasks_of(table, settings), _OWN)
    title = "Trained on one dataset, tested on others: accuracy, %"
    listings = [TitledList("Remarks", said), *([TitledList("Runs left out", left)] if left else [])]
    return Layout((Grid(title, header, lines),), tuple(listings))


def _tasks_of(table: Table, settings: list[Setting]) -> list[str]:
    """Whether the lines of a column can be compared."""
    hashes: dict[tuple[Setting, str], set[str]] = defaultdict(set)
    for result in table.cross_domain:
        for cell in result.cells:
            hashes[cell.setting, result.tested_as] |= {run.row.episodes_hash for run in cell.runs}
    different = [s.title for s in settings if any(len(found) > 1 for (own, _), found in hashes.items() if own == s)]
    if not different:
        return ["Within a column, all strategies are tested on the same tasks."]
    return [f"Not all rows of a column are tested on the same tasks in {', '.join(different)}."]


def _lines(result: CrossDomainResult, settings: list[Setting], with_hash: bool) -> list[tuple[str, ...]]:
    how = " ".join(_TESTED_AS[word] for word in result.tested_as.split())
    name = f"{result.trained_on} ({result.split_hash or 'data not recorded'})" if with_hash else result.trained_on
    trained = f"{name}, tested {how}" if how else name
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
_INTERVALS = (
    "± is the 95 % interval over seeds (Student-t) and meta-test tasks, combined in quadrature, with the variance "
    "that both contain counted once; with one seed, over tasks alone. The number of seeds is in parentheses."
)
_OWN = "The column of the training dataset has the run's own meta-test, on classes that it had not seen."
_NONE = ("No run was tested on another dataset yet; python -m metakm evaluate RUN --dataset NAME does that.",)

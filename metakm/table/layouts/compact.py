"""Table III on one page: at most 100 columns wide, KM's differences to the others below it, remarks counted."""

from __future__ import annotations

from collections.abc import Iterator

from metakm.table.blocks import Block, Table
from metakm.table.cells import Cell
from metakm.table.grids import Grid, Layout, TitledList
from metakm.table.layouts.full import MARKS, hidden_rows
from metakm.table.layouts.registry import register_table_layout
from metakm.table.pairing import Comparison
from metakm.table.published import Published, published_results

WIDTH = 100
"""Characters in a line, in a terminal."""


@register_table_layout("compact")
def layout_compact(table: Table) -> Layout:
    """One page: accuracies, KM's differences beside the paper's claims, and a count of what is not shown."""
    grids = [_accuracies(block) for block in table.blocks]
    if table.claims:
        grids.append(_claims(table))
    listing = TitledList("Remarks", (*_remarks(table), *_footnotes(table)))
    return Layout(tuple(grids), (listing,), WIDTH)


def _accuracies(block: Block) -> Grid:
    lines = tuple((row.label, *(_cell(row.cells.get(setting)) for setting in block.settings)) for row in block.rows)
    return Grid(f"{block.title}: accuracy, %", ("Method", *(s.title for s in block.settings)), lines)


def _cell(cell: Published | Cell | None) -> str:
    if cell is None:
        return ""
    if isinstance(cell, Published):
        return f"{cell.accuracy:.2f} ± {cell.plus_minus:.2f}"
    return f"{_format_interval(f'{cell.mean:.2f}', cell.ci95)} ({cell.n_seeds})"


def _claims(table: Table) -> Grid:
    """KM minus ANIL, then minus MAML: what the paper says, and one line per measured pair of rows."""
    settings = tuple(dict.fromkeys(claim.setting for claim in table.claims))
    lines, counted = [], "(seeds)"
    for peer in dict.fromkeys(claim.peer for claim in table.claims):
        own = {claim.setting: claim for claim in table.claims if claim.peer == peer}
        said = ("KM higher" if own[setting].claimed else "none" for setting in settings)
        lines.append((f"{peer.upper()} (the paper's claim)", *said))
        measured = {(c.second.protocol, c.first.setting): c for claim in own.values() for c in claim.measured}
        for protocol in dict.fromkeys(protocol for protocol, _ in measured):
            found = (measured.get((protocol, setting)) for setting in settings)
            lines.append((protocol.label, *("" if c is None else _format_difference(c) for c in found)))
        if any(c.seeds_to_tell is not None for c in measured.values()):
            counted = "(seeds; k of n: n needed)"
    header = ("KM minus", *(setting.title for setting in settings))
    marks = "> higher, < lower, ~ within noise"
    return Grid(f"KM minus the others, in points: {marks} {counted}", header, tuple(lines))


def _format_difference(c: Comparison) -> str:
    mark = f" {MARKS[c.verdict]}" if c.verdict in MARKS else ""
    needed = "" if c.seeds_to_tell is None else f" of {c.seeds_to_tell}"
    return f"{_format_interval(f'{c.difference:+.2f}', c.ci95)}{mark} ({len(c.seeds)}{needed})"


def _format_interval(text: str, width: float | None) -> str:
    return text if width is None else f"{text} ± {width:.2f}"


def _remarks(table: Table) -> Iterator[str]:
    """What is not shown, counted."""
    yield from hidden_rows(table)
    counts = {
        "runs left out": len(table.left_out),
        "files not read": len(table.problems),
        "notes on the runs": len(table.notes),
        "differences between compared runs": sum(len(c.caveats) for c in table.comparisons),
    }
    if any(counts.values()):
        yield f"{', '.join(f'{name}: {count}' for name, count in counts.items() if count)}; listed by --all"


def _footnotes(table: Table) -> Iterator[str]:
    shown = {cell for block in table.blocks for row in block.rows for cell in row.cells.values()}
    meanings: dict[str, list[str]] = {}
    for published in published_results():
        methods = meanings.setdefault(published.meaning, [])
        if published in shown and published.method not in methods:
            methods.append(published.method)
    said = [f"{meaning} ({', '.join(methods)})" for meaning, methods in meanings.items() if methods]
    if said:
        yield f"± of published rows: {'; '.join(said)}. A value that our copy of the paper lacks is left blank."
    if table.cells:
        yield (
            "± of measured rows and differences: the 95 % interval over seeds (Student-t) and meta-test tasks, "
            "combined in quadrature, with the variance that both contain counted once; with one seed, over tasks "
            "alone. The number of seeds is in parentheses; with one, a difference gets neither > nor <."
        )
        yield "A measured row is named by strategy and preset. Only preset paper is the published protocol."

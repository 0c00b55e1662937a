"""Table III in full: every measured cell with its intervals, the paper's claims, and all remarks."""

from __future__ import annotations

from collections.abc import Sequence

from metakm.errors import counted
from metakm.table.blocks import Block, Claim, Table
from metakm.table.cells import Cell
from metakm.table.grids import Grid, Layout, TitledList
from metakm.table.layouts.registry import register_table_layout
from metakm.table.pairing import Comparison
from metakm.table.published import KM_CLAIMED_ABOVE, Published, published_results
from metakm.table.setting import Setting

MARKS = {"above": ">", "below": "<", "within noise": "~"}


@register_table_layout("full")
def layout_full(table: Table) -> Layout:
    """Everything: each measured cell with its intervals, the paper's claims, and all remarks."""
    grids = [_claims(table.claims)] if table.claims else []
    for block in reversed(table.blocks):
        details = _details(table, block)
        grids = [_overview(table, block), *([details] if details.lines else []), *grids]
    return _layout(grids, table.comparisons, [], table, (*_published_meanings(), *_FOOTNOTES))


def layout_comparisons(comparisons: Sequence[Comparison], refused: Sequence[str], table: Table) -> Layout:
    """The requested comparisons, what else differs, and the lists below."""
    header = ("Setting", "First", "Second", "Difference, points", "Seed numbers", "Tasks", "Verdict")
    lines = tuple(
        (
            c.first.setting.title,
            c.first.protocol.label,
            c.second.protocol.label,
            _format_difference(c),
            " ".join(map(str, c.seeds)),
            str(c.first.n_tasks),
            _format_verdict(c),
        )
        for c in comparisons
    )
    grid = Grid("First minus second, in pairs on the same meta-test episodes", header, lines)
    return _layout([grid], comparisons, [TitledList("Not compared", tuple(refused))], table, _FOOTNOTES_OF_PAIRS)


_FOOTNOTES_OF_PAIRS = (
    "Differences: (seeds) is Welch's 95 % t interval of the difference between two samples of mean accuracies, one per "
    "seed; (tasks) is 1.96 std / sqrt(n) of the differences by meta-test task, each averaged over the seeds: it "
    "holds for these trained models.",
    "Above or below: the difference exceeds sqrt(seeds^2 + tasks^2 - residual^2) of its intervals, where the residual "
    "is what both contain. With one seed there is no verdict: a difference that exceeds its interval over tasks holds "
    "for these trained models only.",
    "The number of seeds needed assumes that the difference and its spread stay the same; there is none where only "
    "more tasks could make the interval narrow enough.",
)
_FOOTNOTES = (
    "± of measured rows, half-widths of 95 % intervals: (seeds) Student-t over seeds; (tasks) 1.96 std / sqrt(n) over "
    "meta-test tasks, of the mean over seeds: it holds for these trained models.",
    "A measured row is named by strategy, preset, and what was changed in the preset. Only rows of preset paper "
    "without changes follow the published protocol and can confirm or contradict a claim; quick is scaled down.",
    "Training: wall time of meta-training on the device of that run, validation included, the mean over seeds. Other "
    "jobs on the machine lengthen it.",
    "> < ~ after a KM row: above, below, or within noise of the row of the same preset and changes; neither above nor "
    "below with one seed; in the paper's own row: what its text claims.",
    *_FOOTNOTES_OF_PAIRS,
)


def _layout(
    grids: Sequence[Grid],
    comparisons: Sequence[Comparison],
    first: Sequence[TitledList],
    table: Table,
    reading: Sequence[str],
) -> Layout:
    caveats = (
        f"{c.first.title} against {c.second.protocol.label}: {'; '.join(c.caveats)}" for c in comparisons if c.caveats
    )
    listings = (
        *first,
        TitledList("What else differs between compared rows", tuple(caveats)),
        TitledList(
            "Left out", tuple(f"{item.run.name} ({item.run.row.run_id}): {item.reason}" for item in table.left_out)
        ),
        TitledList("Not read", tuple(f"{problem.name}: {problem.reason}" for problem in table.problems)),
        TitledList("Notes", (*table.notes, *hidden_rows(table))),
        TitledList("How to read this", tuple(reading)),
    )
    return Layout(tuple(grids), tuple(listing for listing in listings if listing.items))


def hidden_rows(table: Table) -> tuple[str, ...]:
    """How many measured rows are not shown, if any, and what shows them."""
    counts = {
        "of other protocols or settings: --all": table.hidden,
        "tested on other data than trained on: --layout cross-domain": sum(
            cell.runs[0].row.trained_on != "" for result in table.cross_domain for cell in result.cells
        ),
    }
    return tuple(f"{counted(n, 'row')} {which}" for which, n in counts.items() if n)


def _overview(table: Table, block: Block) -> Grid:
    lines = tuple(
        (row.label, *(_format_cell(table, row.cells.get(setting)) for setting in block.settings)) for row in block.rows
    )
    return Grid(f"{block.title}: accuracy, %", ("Method", *(s.title for s in block.settings)), lines)


def _format_cell(table: Table, cell: Published | Cell | None) -> str:
    if cell is None:
        return ""
    if isinstance(cell, Published):
        own = cell.method.startswith("KM")
        claims = [f">{peer.upper()}" for peer in ("anil", "maml") if own and (peer, cell.setting) in KM_CLAIMED_ABOVE]
        return " ".join([f"{cell.accuracy:.2f} ± {cell.plus_minus:.2f}", *claims])
    found = {peer: table.comparison(cell, peer) for peer in ("anil", "maml") if cell.algo == "km"}
    marks = [f"{MARKS[c.verdict]}{peer.upper()}" for peer, c in found.items() if c is not None and c.verdict in MARKS]
    return " ".join([_format_intervals(f"{cell.mean:.2f}", cell.seeds_ci95, cell.tasks_ci95), *marks])


def _details(table: Table, block: Block) -> Grid:
    names = ("Measured", "Setting", "Batch norm", "Accuracy, %", "± seeds", "± tasks", "Seeds", "Tasks", "Adapted")
    header = (*names, "Of MAML's", "Training, h", f"Minus {table.baseline}, points")
    lines = []
    for row in block.rows:
        for setting in block.settings:
            if isinstance(cell := row.cells.get(setting), Cell):
                comparison = table.comparison(cell, table.baseline)
                difference = "" if comparison is None else _format_difference(comparison)
                lines.append((*_detail(row.label, setting, cell), difference))
    return Grid(f"{block.title}: measured cells", header, tuple(lines))


def _detail(label: str, setting: Setting, cell: Cell) -> tuple[str, ...]:
    return (
        label,
        setting.title,
        cell.bn_mode,
        f"{cell.mean:.2f}",
        _format_number(cell.seeds_ci95),
        _format_number(cell.tasks_ci95),
        str(cell.n_seeds),
        str(cell.n_tasks),
        "" if cell.adapted_parameters is None else f"{cell.adapted_parameters:,}",
        _format_ratio(cell.ratio_to_maml),
        f"{cell.train_hours:.2f}",
    )


def _claims(claims: Sequence[Claim]) -> Grid:
    lines = []
    for claim in claims:
        measured = [f"{c.first.protocol.label}: {_format_difference(c)}, {_format_claim(c)}" for c in claim.measured]
        said = "claimed" if claim.claimed else "no claim"
        lines.append(
            (f"KM above {claim.peer.upper()}, {claim.setting.title}", said, "; ".join(measured) or "not measured")
        )
    return Grid("What the paper claims (Sec. IV-C)", ("Claim", "The paper", "Measured, points"), tuple(lines))


def _format_claim(c: Comparison) -> str:
    return _format_verdict(c) if c.first.protocol.published else f"{_format_verdict(c)} (not the published protocol)"


def _format_verdict(c: Comparison) -> str:
    return c.verdict if c.seeds_to_tell is None else f"{c.verdict}; about {c.seeds_to_tell} seeds needed"


def _published_meanings() -> tuple[str, ...]:
    """One line per published method."""
    lines = (f"{p.method}: ± is {p.meaning} ({p.source})." for p in published_results())
    return tuple(dict.fromkeys(lines))


def _format_difference(c: Comparison) -> str:
    return _format_intervals(f"{c.difference:+.2f}", c.seeds_ci95, c.tasks_ci95)


def _format_intervals(text: str, seeds_ci95: float | None, tasks_ci95: float | None) -> str:
    named = ((seeds_ci95, "seeds"), (tasks_ci95, "tasks"))
    return " ".join([text, *(f"± {value:.2f} ({name})" for value, name in named if value is not None)])


def _format_number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _format_ratio(ratio: float | None) -> str:
    """A fraction below one as the paper gives it, such as 1/51.1."""
    if ratio is None:
        return ""
    return f"1/{1 / ratio:.1f}" if 0 < ratio < 1 else f"{ratio:.4g}"

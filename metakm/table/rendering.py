"""The formats of the table: text for a terminal, Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Callable, Sequence
from typing import Literal

from metakm.io.csv_file import csv_text
from metakm.io.markdown import markdown_table
from metakm.table.blocks import Table
from metakm.table.grids import Grid, Layout, TitledList
from metakm.table.layouts import lay_out, layout_comparisons
from metakm.table.pairing import Comparison
from metakm.table.records import RECORD_COLUMNS, Records, comparison_records, table_records

Format = Literal["table", "csv", "markdown", "latex", "json"]


def render_table(table: Table, form: Format = "table", layout: str | None = None) -> str:
    """The table as text that ends in a line break.

    Args:
        layout: a registered name, such as `compact`. None for `full`, or for CSV and JSON the numbers as records.

    Raises:
        UserError: see `lay_out`.
    """
    if layout is None and form in _records:
        return _records[form](table_records(table))
    return render_layout(lay_out(table, layout or "full"), form)


def render_comparisons(
    comparisons: Sequence[Comparison], refused: Sequence[str], table: Table, form: Format = "table"
) -> str:
    """Comparisons alone (see `comparisons_between`), with the runs of `table` that were left out or not read."""
    if form in _records:
        return _records[form](comparison_records(comparisons, refused, table))
    return _layouts[form](layout_comparisons(comparisons, refused, table))


def render_layout(layout: Layout, form: Format = "table") -> str:
    """A layout as text; as CSV or JSON, the texts of its grids."""
    if form in _records:
        found = [{"table": g.title, **dict(zip(g.header, line, strict=True))} for g in layout.grids for line in g.lines]
        if form == "json":
            return json.dumps(found, indent=2, ensure_ascii=False) + "\n"
        columns = dict.fromkeys(name for record in found for name in record)
        return csv_text(found, tuple(columns))
    return _layouts[form](layout)


def _text(layout: Layout) -> str:
    grids = [_text_grid(grid, layout.width) for grid in layout.grids]
    parts = [*grids, *(_list(listing, layout.width) for listing in layout.listings)]
    return "\n".join(parts).replace("±", "+-")


def _text_grid(grid: Grid, width: int | None) -> str:
    lines = [[[text.replace("±", "+-")] for text in line] for line in (grid.header, *grid.lines)]
    if width is not None and _width(_widths(lines)) > width:
        lines = _wrap_columns(lines, width)
    widths = _widths(lines)
    header, *padded = [_align(line, widths) for line in lines]
    rule = "-" * _width(widths)
    return "\n".join([grid.title, rule, header, rule, *padded, rule]) + "\n"


WrappedLine = list[list[str]]  # the texts of a row, each broken into lines


def _widths(lines: Sequence[WrappedLine]) -> list[int]:
    return [max(len(part) for text in column for part in text) for column in zip(*lines, strict=True)]


def _width(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def _wrap_columns(lines: Sequence[WrappedLine], width: int) -> list[WrappedLine]:
    """Break headers after their first word, and the first column to the width that is left, or to 16 characters."""
    header, *body = lines
    lines = [[header[0], *(name.split(" ", 1) for (name,) in header[1:])], *body]
    widths = _widths(lines)
    first = max(16, width - _width([0, *widths[1:]]))
    return [[textwrap.wrap(line[0][0], first, subsequent_indent="  ") or [""], *line[1:]] for line in lines]


def _align(line: WrappedLine, widths: Sequence[int]) -> str:
    rows = itertools.zip_longest(*line, fillvalue="")
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _list(listing: TitledList, width: int | None) -> str:
    items = [f"- {item.replace('±', '+-')}" for item in listing.items]
    if width is not None:
        items = [textwrap.fill(item, width, subsequent_indent="  ") for item in items]
    return "\n".join([f"{listing.title}:", *items]) + "\n"


def _markdown(layout: Layout) -> str:
    grids = [_markdown_grid(grid) for grid in layout.grids]
    lists = [
        "\n".join(
            [f"**{_escape(listing.title, _MARKDOWN)}**", "", *(f"- {_escape(i, _MARKDOWN)}" for i in listing.items)]
        )
        for listing in layout.listings
    ]
    return "\n\n".join([*grids, *lists]) + "\n"


def _markdown_grid(grid: Grid) -> str:
    header, *lines = [[_escape(text, _MARKDOWN) for text in line] for line in (grid.header, *grid.lines)]
    return f"**{_escape(grid.title, _MARKDOWN)}**\n\n{markdown_table(header, lines)}"


def _latex(layout: Layout) -> str:
    grids = [_latex_grid(grid) for grid in layout.grids]
    lists = [
        "\n".join(
            [
                rf"\paragraph{{{_escape(listing.title, _LATEX)}}}",
                r"\begin{itemize}",
                *(rf"  \item {_escape(item, _LATEX)}" for item in listing.items),
                r"\end{itemize}",
            ]
        )
        for listing in layout.listings
    ]
    return "\n\n".join([r"% needs \usepackage{booktabs}", *grids, *lists]) + "\n"


def _latex_grid(grid: Grid) -> str:
    lines = [
        "    " + " & ".join(_escape(text, _LATEX) for text in line) + r" \\" for line in (grid.header, *grid.lines)
    ]
    return "\n".join(
        [
            r"\begin{table}",
            rf"  \caption{{{_escape(grid.title, _LATEX)}}}",
            rf"  \begin{{tabular}}{{{'l' * len(grid.header)}}}",
            r"    \toprule",
            lines[0],
            r"    \midrule",
            *lines[1:],
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )


def _csv(records: Records) -> str:
    return csv_text([{"kind": kind, **record} for kind, found in records.items() for record in found], RECORD_COLUMNS)


def _json(records: Records) -> str:
    return json.dumps(records, indent=2, ensure_ascii=False) + "\n"


def _escape(text: str, special: dict[str, str]) -> str:
    return "".join(special.get(character, character) for character in text)


_MARKDOWN = {character: "\\" + character for character in "\\`*_[]<>|~#"}
_LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "~": r"$\sim$",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "[": "{[}",
    **{character: "\\" + character for character in "&%$#_{}"},
}
_layouts: dict[str, Callable[[Layout], str]] = {"table": _text, "markdown": _markdown, "latex": _latex}
_records: dict[str, Callable[[Records], str]] = {"csv": _csv, "json": _json}
RECORD_FORMATS = frozenset(_records)
"""Formats that hold numbers rather than texts, unless a layout is asked for."""

"""The formats of the table: text for a terminal, Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from metakm.results.blocks import Table
from metakm.results.layout import Grid, Layout, Listing, layout_comparisons, layout_table
from metakm.results.pairing import Comparison
from metakm.results.records import COLUMNS, Records, comparison_records, table_records

Format = Literal["table", "csv", "markdown", "latex", "json"]


def render_table(table: Table, form: Format = "table") -> str:
    """The whole table as text that ends in a line break."""
    if form in _records:
        return _records[form](table_records(table))
    return _layouts[form](layout_table(table))


def render_comparisons(
    comparisons: Sequence[Comparison], refused: Sequence[str], table: Table, form: Format = "table"
) -> str:
    """Comparisons alone (see `comparisons_between`), with the runs of `table` that were left out or not read."""
    if form in _records:
        return _records[form](comparison_records(comparisons, refused, table))
    return _layouts[form](layout_comparisons(comparisons, refused, table))


def render_layout(layout: Layout, form: Format = "table") -> str:
    """A layout of another table than III; as CSV or JSON, the texts of its grids."""
    if form in _records:
        found = [{"table": g.title, **dict(zip(g.header, line, strict=True))} for g in layout.grids for line in g.lines]
        if form == "json":
            return json.dumps(found, indent=2, ensure_ascii=False) + "\n"
        columns = dict.fromkeys(name for record in found for name in record)
        return _csv_of(found, tuple(columns))
    return _layouts[form](layout)


def _text(layout: Layout) -> str:
    parts = [*map(_text_grid, layout.grids), *map(_list, layout.listings)]
    return "\n".join(parts).replace("±", "+-")


def _text_grid(grid: Grid) -> str:
    lines = [[text.replace("±", "+-") for text in line] for line in (grid.header, *grid.lines)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(grid.header))]
    padded = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([grid.title, rule, padded[0], rule, *padded[1:], rule]) + "\n"


def _list(listing: Listing) -> str:
    return "\n".join([f"{listing.title}:", *(f"- {item}" for item in listing.items)]) + "\n"


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
    lines = ["| " + " | ".join(_escape(text, _MARKDOWN) for text in line) + " |" for line in (grid.header, *grid.lines)]
    return "\n".join(
        [f"**{_escape(grid.title, _MARKDOWN)}**", "", lines[0], "|---" * len(grid.header) + "|", *lines[1:]]
    )


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
    return _csv_of([{"kind": kind, **record} for kind, found in records.items() for record in found], COLUMNS)


def _csv_of(records: Sequence[Mapping[str, object]], columns: Sequence[str]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue()


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

"""`python -m metakm.table`: runs as the paper's Table III, beside published values."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from metakm.cli.exit_code import exit_code
from metakm.cli.flags import read_options
from metakm.cli.progress import log_line
from metakm.errors import UserError
from metakm.fields import require_file
from metakm.registry import load_plugin
from metakm.table.blocks import Table, build_table
from metakm.table.collect import read_runs
from metakm.table.forest import forest_picture
from metakm.table.layouts import table_layouts
from metakm.table.output import picture_format, write_table
from metakm.table.pairing import comparisons_between
from metakm.table.rendering import RECORD_FORMATS, Format, render_comparisons, render_table
from metakm.table.selection import main_table, select_strategies, sort_by_accuracy


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Show the runs below a folder as Table III, next to the published rows.

    By default, runs of preset table3 without changes; if none, of other presets.

    --all shows every protocol and setting, and says what was left out and why.
    """

    results: Annotated[Path, tyro.conf.Positional] = Path("results")
    """Folder with the runs; every result.csv below it is read."""
    format: Format = "table"
    """table for a terminal, csv, markdown, latex (with booktabs) or json."""
    layout: Annotated[str | None, tyro.conf.arg(help_behavior_hint="(default: compact, or full with --all)")] = None
    """compact (one page), full, cross-domain (trained on x tested on), or one from a plugin. With --format csv or json, its cells are text, not numbers."""  # noqa: E501
    out: Path | None = None
    """File to write instead of printing."""
    all: bool = False
    """Show every measured protocol and setting, differences to --baseline, and all remarks."""
    only: Annotated[tuple[str, ...], tyro.conf.arg(help_behavior_hint="(default: all)")] = ()
    """Show only these strategies, such as km."""
    sort: bool = False
    """Sort by the first column, best first; by default in the order of the paper."""
    paper_columns: bool = False
    """Keep columns of the paper without a measurement; --all does, too."""
    baseline: str = "anil"
    """Strategy to which the others are compared, with --all, csv or json."""
    compare: tuple[str, str] | None = None
    """Print the paired difference of two strategies instead of the table: km anil. A full row name, as in
    "km (quick)", selects only that row."""
    plot: Path | None = None
    """Also write a forest plot of the cells: a .png, .svg or .pdf file; needs metakm[report]."""
    strict: bool = False
    """Exit with code 1 if a result.csv could not be used."""
    plugin: Annotated[tuple[Path, ...], tyro.conf.arg(help_behavior_hint="(default: none)")] = ()
    """Python files that register layouts; they run with your permissions."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 a file that could not be read (with --strict), 2 a user error, such as another --out."""
    return exit_code(lambda: _run(_read(arguments)))


def _read(arguments: Sequence[str] | None) -> TableOptions:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if any(argument.partition("=")[0] == "--paper" for argument in arguments):
        raise UserError(
            "Expected flags of Table III, got --paper; the paper's other tables are made by "
            "python -m metakm.experiments.table table1 RESULTS, and likewise table2 and fig5"
        )
    return read_options(TableOptions, "python -m metakm.table", arguments)


def _run(options: TableOptions) -> int:
    _check(options)
    for plugin in options.plugin:
        load_plugin(plugin)
    if options.layout is not None:
        table_layouts.get(options.layout)  # refused before the runs are read
    form = None if options.plot is None else picture_format(options.plot)
    for field, path in (("out", options.out), ("plot", options.plot)):
        if path is not None:
            require_file(path, field)
    collection = read_runs(options.results)
    whole = build_table(collection, options.baseline)
    table = _selected(whole, options)
    if options.compare is None:
        text = render_table(table, options.format, _layout(options))
    else:
        text = render_comparisons(*comparisons_between(whole.cells, *options.compare), whole, options.format)
    write_table(text, options.out, options.plot, None if form is None else lambda: forest_picture(table, form))
    if not collection.runs and not collection.problems:
        log_line(f"No result.csv was found below {options.results}; the table has published rows only.")
    for problem in collection.problems:
        log_line(f"not read: {problem.path}: {problem.reason}")
    return 1 if options.strict and collection.problems else 0


def _check(options: TableOptions) -> None:
    """Refuse flags that cannot be combined."""
    selecting: dict[str, object] = {"--all": options.all, "--only": options.only, "--sort": options.sort}
    selecting |= {"--paper-columns": options.paper_columns, "--layout": options.layout}
    for flag, given in selecting.items():
        if given and options.compare:
            raise UserError(f"Expected {flag} without --compare, got both; leave one of them out")
    if options.all and options.paper_columns:
        raise UserError("Expected --all or --paper-columns, got both; leave one of them out")


def _layout(options: TableOptions) -> str | None:
    """The layout's name; None for that of `render_table`."""
    return options.layout or (None if options.all or options.format in RECORD_FORMATS else "compact")


def _selected(table: Table, options: TableOptions) -> Table:
    """The part of the table that was asked for."""
    table = select_strategies(table, options.only) if options.only else table
    table = table if options.all else main_table(table, options.paper_columns)
    return sort_by_accuracy(table) if options.sort else table


if __name__ == "__main__":
    sys.exit(main())

"""`python -m metakm.report`: all runs below a folder as one self-contained page."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from metakm.cli.exit_code import exit_code
from metakm.cli.flags import read_options
from metakm.errors import UserError, missing_extra
from metakm.fields import require, require_file
from metakm.io.figure import import_matplotlib
from metakm.io.files import write_text
from metakm.registry import load_plugin
from metakm.report.inspection import inspect_cells
from metakm.report.page import render_page
from metakm.table.blocks import build_table
from metakm.table.collect import read_runs
from metakm.table.selection import main_table


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Write one self-contained HTML page of all runs below a folder.

    It holds the table, a forest plot, learning curves, test episodes and kernels.
    """

    results: Annotated[Path, tyro.conf.Positional] = Path("results")
    """Folder with the runs; every result.csv below it is read."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("report.html")
    """The page; an existing one is replaced."""
    all: bool = False
    """Show every measured protocol and setting; by default, those that python -m metakm.table shows."""
    baseline: str = "anil"
    """Strategy to which the others are compared."""
    episodes: int = 2
    """Test episodes to show for each setting, and to adapt to for the kernels. 0 shows neither, and needs no weights or data."""  # noqa: E501
    data_root: Path | None = None
    """Folder with the data, in place of each run's own."""
    plugin: Annotated[tuple[Path, ...], tyro.conf.arg(help_behavior_hint="(default: none)")] = ()
    """Python files that register strategies of the runs; they run with your permissions. The plugins that runs name are not loaded automatically."""  # noqa: E501


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 standard output that cannot be written, 2 a user error."""
    return exit_code(
        lambda: _write(read_options(ReportOptions, "python -m metakm.report", arguments)),
    )


def _write(options: ReportOptions) -> int:
    if options.episodes < 0:
        raise UserError(f"Expected --episodes to be 0 or more, got {options.episodes}")
    require(options.out.suffix in (".html", ".htm"), "out", "a page that ends in .html", options.out)
    require_file(options.out, "out")
    if importlib.util.find_spec("jinja2") is None:
        raise missing_extra("jinja2", "report", "the page")
    import_matplotlib("the page")
    for plugin in options.plugin:
        load_plugin(plugin)
    collection = read_runs(options.results)
    if not collection.runs and not collection.problems:
        raise UserError(
            f"Expected a result.csv below {options.results}, got none; give the --out of your runs, or make one "
            "with python -m metakm.run"
        )
    table = build_table(collection, options.baseline)
    table = table if options.all else main_table(table)
    seen, unseen = inspect_cells(table.cells, options.episodes, options.data_root) if options.episodes else ({}, ())
    page = render_page(str(options.results), collection, table, seen, unseen)
    try:
        write_text(options.out, page)
    except OSError as error:
        raise UserError(f"Expected a file that can be written, got {error}; choose another --out") from error
    print(f"{options.out}: {len(table.cells)} measured cells, {len(seen)} runs inspected")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())

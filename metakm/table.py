"""`python -m metakm.table`: the rows of runs as the paper's Table III, beside the published values."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from metakm.errors import UserError
from metakm.files import replacing, write_text
from metakm.flags import read_options
from metakm.results import build_table, comparisons_between, read_runs
from metakm.results.forest import forest_picture, picture_format
from metakm.results.rendering import Format, render_comparisons, render_table


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Put the rows of all runs below a folder into Table III, beside published ones.

    Listed below it by name: runs not done, duplicates, files that cannot be read.
    """

    results: Annotated[Path, tyro.conf.Positional] = Path("results")
    """Folder with the runs; every result.csv below it is read."""
    format: Format = "table"
    """table for a terminal, csv, markdown, latex (with booktabs) or json."""
    out: Path | None = None
    """File to write instead of printing."""
    baseline: str = "anil"
    """Strategy that the differences of the others are taken to."""
    compare: tuple[str, str] | None = None
    """Print the paired difference of two strategies instead of the table: km anil. A row's full name, as in
    "km (quick)", stands for that row alone."""
    plot: Path | None = None
    """Write a forest plot of the cells too: a .png, .svg or .pdf file."""
    strict: bool = False
    """Exit with code 1 if a result.csv could not be used."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 a file that could not be used under --strict, 2 the user's mistake."""
    try:
        return _run(read_options(TableOptions, "python -m metakm.table", arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2


def _run(options: TableOptions) -> int:
    form = None if options.plot is None else picture_format(options.plot)
    collection = read_runs(options.results)
    table = build_table(collection, options.baseline)
    if options.compare is None:
        text = render_table(table, options.format)
    else:
        text = render_comparisons(*comparisons_between(table.cells, *options.compare), table, options.format)
    try:
        if options.plot is not None and form is not None:
            with replacing(options.plot) as file:
                file.write(forest_picture(table, form))
        if options.out is not None:
            write_text(options.out, text)
    except OSError as error:
        raise UserError(f"Expected files that can be written, got {error}; choose another --out or --plot") from error
    if options.out is None:
        print(text, end="")  # noqa: T201
    for problem in collection.problems:
        print(f"not read: {problem.path}: {problem.reason}", file=sys.stderr)  # noqa: T201
    return 1 if options.strict and collection.problems else 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m metakm.experiments.table`: Tables I and II, Fig. 5; the rates tried."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from metakm.cli.exit_code import exit_code
from metakm.cli.flags import read_options
from metakm.cli.progress import log_line
from metakm.errors import UserError
from metakm.experiments.fig5 import fig5_picture
from metakm.experiments.layout import PaperTable, layout_paper
from metakm.experiments.lines import read_experiments
from metakm.experiments.memory_figure import memory_picture
from metakm.experiments.rates import layout_rates
from metakm.table.output import picture_format, write_table
from metakm.table.rendering import Format, render_layout


@dataclass(frozen=True, kw_only=True)
class PaperTableOptions:
    """Put experiments into one of the paper's tables, or list the rates tried.

    Published values are shown next to the measured ones.
    """

    table: Annotated[PaperTable | Literal["rates"], tyro.conf.Positional, tyro.conf.arg(metavar="TABLE")]
    """table1: training from scratch; table2: transfer; fig5: the ablation of the modulator; rates: those that --tune tried."""  # noqa: E501
    results: Annotated[Path, tyro.conf.Positional] = Path("results")
    """Folder with the runs; every experiment.csv below it is read."""
    format: Format = "table"
    """table for a terminal, csv, markdown, latex (with booktabs) or json."""
    out: Path | None = None
    """File to write instead of printing."""
    plot: Path | None = None
    """Also draw fig5, or for table2 the memory that 1 to 100 tasks take, to a .png, .svg or .pdf file; needs metakm[report]."""  # noqa: E501
    strict: bool = False
    """Exit with code 1 if an experiment.csv could not be used."""


_PICTURES = {"table2": memory_picture, "fig5": fig5_picture}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 a file that could not be used under --strict or not be written, 2 a user error."""
    return exit_code(
        lambda: _run(read_options(PaperTableOptions, "python -m metakm.experiments.table", arguments)),
    )


def _run(options: PaperTableOptions) -> int:
    if options.plot is not None and options.table not in _PICTURES:
        raise UserError(f"Expected --plot with {' or '.join(_PICTURES)}, got it with {options.table}; leave it out")
    form = None if options.plot is None else picture_format(options.plot)
    runs, problems = read_experiments(options.results)
    layout = layout_rates(runs, problems) if options.table == "rates" else layout_paper(options.table, runs, problems)
    text = render_layout(layout, options.format)
    write_table(text, options.out, options.plot, None if form is None else lambda: _PICTURES[options.table](runs, form))
    for problem in problems:
        log_line(f"not read: {problem}")
    return 1 if options.strict and problems else 0


if __name__ == "__main__":
    sys.exit(main())

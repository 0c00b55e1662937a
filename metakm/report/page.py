"""The report: one self-contained HTML page of everything below a folder of results."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from metakm.errors import counted
from metakm.report.charts import inline, page_style
from metakm.report.gallery import Inspection
from metakm.report.sections import Section, build_sections
from metakm.table.blocks import Table
from metakm.table.collect import Collection, RecordedRun
from metakm.table.forest import forest_picture
from metakm.table.grids import Grid, TitledList
from metakm.table.layouts import lay_out

if TYPE_CHECKING:
    import jinja2

_NUMBER = re.compile(r"[+-]?(\d[\d,]*(\.\d+)?|1/\d+\.\d+)( ± .*| [<>~].*)?")


def render_page(
    name: str,
    collection: Collection,
    table: Table,
    inspections: Mapping[Path, Inspection],
    uninspected: tuple[str, ...] = (),
) -> str:
    """The page as HTML. It loads nothing from elsewhere, runs no script, and is the same for the same results.

    Args:
        name: of the folder, as the reader knows it.
        collection: what was read; its runs are listed in full.
        table: built from it.
        inspections: by the path of the run's result.csv; a run without one has no episodes or kernels on the page.
        uninspected: why runs could not be inspected, by name.
    """
    sections, without_curve = build_sections(table.cells, inspections)
    layout = lay_out(table, "full")
    missing = (*without_curve, *uninspected)
    listings = (*([TitledList("Not shown", missing)] if missing else []), *layout.listings)
    with page_style():
        forest = forest_picture(table, "svg").decode()
    return _template().render(
        name=name,
        summary=_summary(collection, table, sections),
        layout=layout._replace(listings=listings),
        forest=inline(forest, "forest", "Forest plot of the table's accuracies and intervals, published values above"),
        sections=sections,
        uninspected=uninspected,
        runs=_runs(collection.runs),
        style=_resource("page.css"),
        version=version("metakm"),
    )


def _template() -> jinja2.Template:
    import jinja2  # an extra; the command has checked that it is installed

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"parts": _parts, "numeric": _numeric}
    return environment.from_string(_resource("page.html"))


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _summary(collection: Collection, table: Table, sections: tuple[Section, ...]) -> str:
    days = sorted({run.row.started_at[:10] for run in collection.runs})
    parts = [counted(len(collection.runs), "run"), counted(len(table.cells), "measured cell")]
    parts += [counted(len(sections), "setting"), *([" to ".join(dict.fromkeys((days[0], days[-1])))] if days else [])]
    return " · ".join(parts)


def _runs(runs: tuple[RecordedRun, ...]) -> Grid:
    header = (
        "Folder", "Status", "Seed", "Accuracy, %", "± tasks", "Tasks", "Iterations", "Iteration, ms", "Training, min",
        "Peak memory, MB", "Batch norm", "Device", "Commit", "Started, UTC",
    )  # fmt: skip
    return Grid("Rows of result.csv", header, tuple(_run(run) for run in runs))


def _run(run: RecordedRun) -> tuple[str, ...]:
    row = run.row
    return (
        run.name,
        row.status,
        str(row.seed),
        "" if row.accuracy is None else f"{100 * row.accuracy:.2f}",
        "" if row.ci95 is None else f"{100 * row.ci95:.2f}",
        f"{row.n_tasks:,}",
        f"{row.iterations:,}",
        "" if row.ms_per_iteration is None else f"{row.ms_per_iteration:,.0f}",
        f"{row.train_seconds / 60:,.1f}",
        f"{row.peak_memory_mb:,.0f}",
        row.bn_mode,
        row.device,
        re.sub(r"\b([0-9a-f]{8})[0-9a-f]{32}", r"\1", row.git_commit),
        row.started_at[:16].replace("T", " "),
    )


def _numeric(grid: Grid) -> list[bool]:
    """For each column, whether all its texts are numbers, with or without an interval."""
    columns = list(zip(*grid.lines, strict=True)) if grid.lines else [()] * len(grid.header)
    return [any(column) and all(not text or _NUMBER.fullmatch(text) for text in column) for column in columns]


def _parts(text: str) -> list[str]:
    """A number, and what follows it: its intervals and marks."""
    return re.split(r" (?=[±<>~])", text) if _NUMBER.fullmatch(text) else [text]

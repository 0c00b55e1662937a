"""The paper's Tables I and II and Fig. 5 from the rows of experiments, next to the published values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from metakm.experiments.lines import Line, RecordedExperiment, difference, line_names, lines_of, setup_titles
from metakm.experiments.paper import (
    FIG5_CLAIMS,
    SCRATCH_SCHEDULE,
    TABLE1_CLAIMS,
    TABLE2_CLAIMS,
    TRANSFER_SCHEDULE,
    Statement,
    is_published,
    published_values,
)
from metakm.table.grids import Grid, Layout, TitledList

PaperTable = Literal["table1", "table2", "fig5"]

FIG5_PANELS = {
    "A: activation": {"default": "tanh", "sin": "sin", "leaky-relu": "leaky ReLU 0.1", "relu": "ReLU"},
    "B: initialisation": {"default": "identity", "orthogonal": "orthogonal", "diagonal": "diagonal"},
    "C: layers": {"depth-1": "1", "default": "2", "depth-5": "5", "depth-10": "10", "depth-20": "20", "depth-50": "50"},
}
_READING = (
    "± of measured rows: half-width of the 95 % interval over seeds (Student-t) and test images, combined in "
    "quadrature, with the variance that both contain counted once; with one seed 1.96 sqrt(p (1 - p) / n) over the n "
    "test images, which does not cover other seeds.",
    "Above or below: the difference exceeds its interval, which is paired over test images; for runs without a "
    "right.txt it is the root of the summed squares of both intervals. With one seed there is no verdict.",
    "Only rows of preset paper with nothing changed follow the published schedule and can confirm or contradict a "
    "claim; quick and short are scaled down.",
)
_COLUMNS = {
    "table1": ("Recovered: accuracy divided by that of full.",),
    "table2": ("Training memory: the peak of the first steps above what the process held before them.",),
}


def layout_paper(table: PaperTable, runs: Iterable[RecordedExperiment], problems: Sequence[str] = ()) -> Layout:
    """The published values, the measured ones by setup, the paper's claims, and what was left out."""
    name = {"table1": "scratch", "table2": "transfer", "fig5": "ablation"}[table]
    lines, left_out = lines_of(run for run in runs if run.row.experiment.split("-")[0] == name)
    build, claims, schedule = _BUILDERS[table]
    grids = [*_published(table)]
    for setup, title in setup_titles({line.setup for line in lines}).items():
        own = [line for line in lines if line.setup == setup]
        grids += [build(title, own), _claims(is_published(own, schedule), own, claims)]
    listings = (
        TitledList("Left out", tuple(left_out)),
        TitledList("Not read", tuple(problems)),
        TitledList("Notes", () if lines else (f"No finished run of python -m metakm.experiments.{name} was found.",)),
        TitledList("How to read this", (*_READING, *_COLUMNS.get(table, ()))),
    )
    return Layout(tuple(grids), tuple(listing for listing in listings if listing.items))


def _published(table: PaperTable) -> list[Grid]:
    found = [line for line in published_values() if line["table"] == table]
    if table == "table1":
        header = ("Published", "Network", "Trainable", "All", "Accuracy, %", "Recovered")
        keys = ("method", "network", "trainable", "total", "accuracy", "recovered")
        lines = [
            tuple(_format_published(p[k], p["plus_minus"]) if k == "accuracy" else p[k] for k in keys) for p in found
        ]
        return [Grid("Table I, published: CIFAR-10 from scratch, 200 epochs", header, tuple(lines))]
    if table == "table2":
        datasets = list(dict.fromkeys(p["dataset"] for p in found))
        cells = {(p["method"], p["dataset"]): _format_published(p["accuracy"], p["plus_minus"]) for p in found}
        methods = dict.fromkeys(p["method"] for p in found)
        rows = tuple((m, *(cells.get((m, d), "") for d in datasets)) for m in methods)
        return [Grid("Table II, published: ResNet-50, accuracy, %", ("Published", *datasets), rows)]
    return []


def _table1(title: str, lines: Sequence[Line]) -> Grid:
    order = ("full", "bl", "km", "km-channel", "sn", "ld", "ld-constant", "tbn")
    lines = _sorted_by_method(lines, order)
    full = [line.mean for line in lines if line.method == "full"]
    header = ("Measured", "Network", "Trainable", "All", "Accuracy, %", "Recovered", "Learning rate", "Seeds")
    cells = [
        (
            name,
            line.first.network,
            f"{line.first.trainable_parameters:,}",
            f"{line.first.total_parameters:,}",
            _format_accuracy(line),
            f"{line.mean / full[0]:.2f}" if len(full) == 1 else "",
            f"{line.learning_rate:g}",
            str(len(line.rows)),
        )
        for name, line in zip(line_names(lines, always=("residual_start",)), lines, strict=True)
    ]
    return Grid(f"Table I, measured ({title})", header, tuple(cells))


def _table2(title: str, lines: Sequence[Line]) -> Grid:
    order = ("tbl-1", "implicit", "explicit", "nc", "tkm-1", "implicit-explicit", "tkm-2", "ttl", "tbl-2")
    lines = _sorted_by_method(lines, order)
    header = (
        "Measured",
        "Network",
        "Trainable",
        "All",
        "Pack, kB",
        "Training memory, MB",
        "Accuracy, %",
        "Mean over classes, %",
        "Learning rate",
        "Seeds",
    )
    cells = [
        (
            name,
            line.first.network,
            f"{line.first.trainable_parameters:,}",
            f"{line.first.total_parameters:,}",
            "" if line.first.pack_bytes is None else f"{line.first.pack_bytes / 1000:.1f}",
            _format_memory(line),
            _format_accuracy(line),
            _format_class_accuracy(line),
            f"{line.learning_rate:g}",
            str(len(line.rows)),
        )
        for name, line in zip(line_names(lines), lines, strict=True)
    ]
    return Grid(f"Table II, measured ({title})", header, tuple(cells))


def _fig5(title: str, lines: Sequence[Line]) -> Grid:
    header = ("Panel", "Modulator", "Trainable", "Accuracy, %", "Seeds")
    cells = [
        (
            panel,
            label,
            f"{line.first.trainable_parameters:,}",
            _format_accuracy(line),
            str(len(line.rows)),
        )
        for panel in FIG5_PANELS
        for label, line in panel_lines(panel, lines)
    ]
    return Grid(f"Fig. 5, measured ({title})", header, tuple(cells))


def panel_lines(panel: str, lines: Sequence[Line]) -> list[tuple[str, Line]]:
    """The lines of one setup in a panel of Fig. 5, with their labels."""
    named = list(zip(line_names(lines, with_rate=True), lines, strict=True))
    return [
        (label + name.removeprefix(method), line)
        for method, label in FIG5_PANELS[panel].items()
        for name, line in named
        if line.method == method
    ]


def _claims(published: bool, lines: Sequence[Line], claims: Sequence[Statement]) -> Grid:
    note = "" if published else ", not the published schedule"
    cells = []
    for claim in claims:
        first, second = ([line for line in lines if line.method == name] for name in (claim.first, claim.second))
        if not first or not second:
            measured = "not measured"
        elif len(first) > 1 or len(second) > 1:
            measured = f"not compared: {claim.first if len(first) > 1 else claim.second} has several lines"
        else:
            measured = _format_difference(first[0], second[0])
        cells.append((f"{claim.first} {claim.relation} {claim.second}", measured))
    header = ("Claim", "First minus second, points")
    return Grid(f"The paper's claims, and the measured differences{note}", header, tuple(cells))


def _format_difference(first: Line, second: Line) -> str:
    """The difference, its interval, and whether it exceeds the interval."""
    found = difference(first, second)
    return f"{found.mean:+.2f} ± {found.ci95:.2f}, {found.verdict}"


def _sorted_by_method(lines: Sequence[Line], order: Sequence[str]) -> list[Line]:
    places = {method: place for place, method in enumerate(order)}
    return sorted(lines, key=lambda line: (places.get(line.method, len(order)), line.learning_rate, line.own))


def _format_memory(line: Line) -> str:
    """The largest of the seeds."""
    peaks = [row.training_memory_mb for row in line.rows if row.training_memory_mb is not None]
    return f"{max(peaks):,.0f}" if peaks else ""


def _format_class_accuracy(line: Line) -> str:
    found = [row.class_accuracy for row in line.rows if row.class_accuracy is not None]
    return f"{100 * sum(found) / len(found):.2f}" if len(found) == len(line.rows) else ""


def _format_accuracy(line: Line) -> str:
    return f"{line.mean:.2f} ± {line.plus_minus:.2f}"


def _format_published(accuracy: str, plus_minus: str) -> str:
    return f"{accuracy} ± {plus_minus}" if plus_minus else accuracy


_BUILDERS: dict[str, tuple[Callable[[str, Sequence[Line]], Grid], tuple[Statement, ...], Mapping[str, object]]] = {
    "table1": (_table1, TABLE1_CLAIMS, SCRATCH_SCHEDULE),
    "table2": (_table2, TABLE2_CLAIMS, TRANSFER_SCHEDULE),
    "fig5": (_fig5, FIG5_CLAIMS, SCRATCH_SCHEDULE),
}
"""How to draw the measured rows, what the paper says, and how it trains."""

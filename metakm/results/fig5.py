"""Fig. 5 as a picture: accuracy by activation, initialisation and depth of the kernel modulator."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from metakm.errors import UserError
from metakm.results.experiment import ExperimentRow, Line, Schedule, lines_of
from metakm.results.forest import PictureFormat
from metakm.results.paper import FIG5_PANELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def fig5_picture(rows: Iterable[ExperimentRow], form: PictureFormat = "png") -> bytes:
    """The picture as a file's bytes: one line of three panels for each schedule, whiskers as in the table.

    Raises:
        UserError: no finished run.
    """
    from matplotlib.figure import Figure  # slow to import, needed for a picture only

    lines, _ = lines_of(row for row in rows if row.experiment == "ablation")
    schedules: dict[Schedule, dict[str, Line]] = {}
    for line in lines:
        schedules.setdefault(line.schedule, {})[line.method] = line
    if not schedules:
        raise UserError("Expected finished runs to draw, got none; run python -m metakm.experiments.ablation first")
    figure = Figure(figsize=(9, 3.4 * len(schedules)), layout="constrained")
    all_axes = figure.subplots(len(schedules), len(FIG5_PANELS), squeeze=False, sharey="row")
    for row_axes, schedule in zip(all_axes, sorted(schedules, key=str), strict=True):
        for axes, (title, labels) in zip(row_axes, FIG5_PANELS.items(), strict=True):
            _panel(axes, title, labels, schedules[schedule])
        row_axes[0].set_ylabel("test accuracy, %")
        row_axes[1].set_xlabel(str(schedule), fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=150)
    return buffer.getvalue()


def _panel(axes: Axes, title: str, labels: Mapping[str, str], found: Mapping[str, Line]) -> None:
    shown = [method for method in labels if method in found]
    means, whiskers = [found[m].mean for m in shown], [found[m].plus_minus for m in shown]
    axes.bar(range(len(shown)), means, yerr=whiskers, capsize=3, color="#0b5394", alpha=0.8)
    axes.set_xticks(range(len(shown)), [labels[m] for m in shown], fontsize="small")
    axes.set_title(title, loc="left", fontsize="medium")
    axes.grid(axis="y", alpha=0.3)

"""Fig. 5 as a picture: accuracy by activation, initialisation and depth of the kernel modulator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from metakm.errors import UserError
from metakm.experiments.layout import FIG5_PANELS, panel_lines
from metakm.experiments.lines import Line, RecordedExperiment, lines_of, setup_titles
from metakm.io.figure import figure_bytes, new_figure
from metakm.table.output import PictureFormat

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def fig5_picture(runs: Iterable[RecordedExperiment], form: PictureFormat = "png") -> bytes:
    """The picture as a file's bytes: a row of three panels per setup, with intervals as in the table.

    Raises:
        UserError: no finished run.
    """
    lines, _ = lines_of(run for run in runs if run.row.experiment == "ablation")
    setups = setup_titles({line.setup for line in lines})
    if not setups:
        raise UserError("Expected finished runs to draw, got none; run python -m metakm.experiments.ablation first")
    figure = new_figure(figsize=(9, 3.4 * len(setups)), layout="constrained")
    all_axes = figure.subplots(len(setups), len(FIG5_PANELS), squeeze=False, sharey="row")
    for row_axes, (setup, title) in zip(all_axes, setups.items(), strict=True):
        own = [line for line in lines if line.setup == setup]
        for axes, panel in zip(row_axes, FIG5_PANELS, strict=True):
            _panel(axes, panel, panel_lines(panel, own))
        row_axes[0].set_ylabel("test accuracy, %")
        row_axes[1].set_xlabel(title, fontsize="small")
    return figure_bytes(figure, form, dpi=150)


def _panel(axes: Axes, title: str, shown: Sequence[tuple[str, Line]]) -> None:
    means, whiskers = [line.mean for _, line in shown], [line.plus_minus for _, line in shown]
    axes.bar(range(len(shown)), means, yerr=whiskers, capsize=3, color="#0b5394", alpha=0.8)
    axes.set_xticks(range(len(shown)), [label for label, _ in shown], fontsize="small")
    axes.set_title(title, loc="left", fontsize="medium")
    axes.grid(axis="y", alpha=0.3)

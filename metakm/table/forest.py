"""A forest plot: each cell with its intervals, the published values above, one panel per setting."""

from __future__ import annotations

import textwrap
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from metakm.errors import UserError
from metakm.io.figure import figure_bytes, new_figure
from metakm.table.blocks import Table
from metakm.table.cells import Cell
from metakm.table.output import PictureFormat
from metakm.table.published import Published
from metakm.table.setting import Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_measured, _published = "#0b5394", "#777777"


def forest_picture(table: Table, form: PictureFormat = "png") -> bytes:
    """The picture as a file's bytes.

    A measured cell is a dot; the thick bar is its interval over seeds, the thin one with caps is the one over tasks.
    A published value is a hollow diamond with the +- of its source, whose meaning differs between sources.

    Raises:
        UserError: a table without rows.
    """
    panels = [(setting, lines) for setting in _settings(table) if (lines := _lines(table, setting))]
    if not panels:
        raise UserError("Expected rows to draw, got none; check --only, or the folder of the runs")
    heights = [sum(_height(label) for label, _ in lines) + 1.5 for _, lines in panels]
    figure = new_figure(figsize=(8, 0.9 + 0.3 * sum(heights)), layout="constrained")
    all_axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (setting, lines) in zip(all_axes, panels, strict=True):
        _panel(axes, setting, lines)
    figure.supxlabel(
        "meta-test accuracy, %; bars are 95 % intervals over seeds (thick) and tasks (capped),\n"
        "of hollow diamonds the published +-",
        fontsize="medium",
    )
    return figure_bytes(figure, form, dpi=150)


def _settings(table: Table) -> list[Setting]:
    return [setting for block in table.blocks for setting in block.settings]


def _lines(table: Table, setting: Setting) -> list[tuple[str, Published | Cell]]:
    rows = [row for block in table.blocks if setting in block.settings for row in block.rows]
    return [(textwrap.fill(row.label, 44), row.cells[setting]) for row in rows if setting in row.cells]


def _height(label: str) -> float:
    """Height of a row, relative to a row with one line of text."""
    return max(1.0, 0.65 * (1 + label.count("\n")))


def _panel(axes: Axes, setting: Setting, lines: list[tuple[str, Published | Cell]]) -> None:
    edges = list(accumulate((_height(label) for label, _ in lines), initial=0.0))
    centers = [(low + high) / 2 for low, high in pairwise(edges)]
    for center, (_, cell) in zip(centers, lines, strict=True):
        if isinstance(cell, Published):
            axes.errorbar(
                cell.accuracy, center, xerr=cell.plus_minus, fmt="D", color=_published, mfc="white", capsize=3
            )
        else:
            axes.errorbar(cell.mean, center, xerr=cell.tasks_ci95, fmt="o", color=_measured, capsize=3)
            axes.errorbar(cell.mean, center, xerr=cell.seeds_ci95, fmt="none", color=_measured, elinewidth=4, alpha=0.4)
    axes.set_yticks(centers, [label for label, _ in lines], parse_math=False)
    axes.set_ylim(edges[-1] + 0.1, -0.1)  # the first row is on top
    axes.set_title(setting.title, loc="left", fontsize="medium", parse_math=False)
    axes.grid(axis="x", alpha=0.3)

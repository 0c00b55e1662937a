"""The report's sections, one per setting: curves, accuracy against adapted parameters, test episodes, kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from metakm.errors import UserError
from metakm.report.charts import (
    AccuracyPoint,
    Chart,
    Curve,
    LineStyle,
    accuracy_by_parameters,
    learning_curves,
    line_style,
)
from metakm.report.gallery import Inspection, ShownEpisode, show_episodes
from metakm.report.modulated_kernels import ShownKernels, show_kernels
from metakm.run.curve import read_curve
from metakm.table.cells import Cell, Protocol
from metakm.table.setting import Setting


@dataclass(frozen=True)
class Section:
    """One setting."""

    setting: Setting
    anchor: str  # of the section; ids within it begin with this one
    charts: tuple[Chart, ...]
    episodes: tuple[ShownEpisode, ...]
    kernels: tuple[ShownKernels, ...]
    unchanged: tuple[str, ...]  # labels of inspected protocols whose kernels adaptation does not change


@dataclass(frozen=True)
class _StyledCell:
    """A cell with its name and style in the section's pictures."""

    cell: Cell
    label: str
    style: LineStyle


def build_sections(
    cells: Sequence[Cell], inspections: Mapping[Path, Inspection]
) -> tuple[tuple[Section, ...], tuple[str, ...]]:
    """A section for each setting, and what is missing from them, by name.

    Args:
        cells: of the table, in its order.
        inspections: by the path of the run's result.csv, for as many runs as there are.
    """
    algos = list(dict.fromkeys(cell.algo for cell in sorted(cells, key=lambda cell: cell.protocol.order)))
    sections, missing = [], []
    for number, setting in enumerate(dict.fromkeys(cell.setting for cell in cells)):
        here = _styled([cell for cell in cells if cell.setting == setting], algos)
        anchor = f"setting-{number}"
        curves, without = _curves(here)
        missing += without
        shown = [
            (one.label, run, inspections[run.path]) for one in here for run in one.cell.runs if run.path in inspections
        ]
        episodes = show_episodes(shown, anchor)
        kernels = show_kernels([(label, run, found.kernels) for label, run, found in shown], anchor)
        changed = {one.label for one in kernels}
        unchanged = tuple(label for label, _, _ in shown if label not in changed)
        charts = tuple(_charts(here, curves, anchor))
        sections.append(Section(setting, anchor, charts, episodes, kernels, unchanged))
    return tuple(sections), tuple(missing)


def short_labels(protocols: Sequence[Protocol]) -> dict[Protocol, str]:
    """The strategy and, if it differs from the others', its protocol without the changes common to all."""
    common = set.intersection(*(set(p.changes) for p in protocols)) if protocols else set()
    one_preset = len({p.preset for p in protocols}) == 1
    own = {p: tuple(change for change in p.changes if change not in common) for p in protocols}
    return {
        p: p.algo if one_preset and not changes else dataclasses.replace(p, changes=changes).label
        for p, changes in own.items()
    }


def _styled(cells: Sequence[Cell], algos: Sequence[str]) -> list[_StyledCell]:
    labels = short_labels([cell.protocol for cell in cells])
    variants: dict[str, int] = {}
    found = []
    for cell in cells:
        variants[cell.algo] = variants.get(cell.algo, -1) + 1
        drawn = line_style(algos.index(cell.algo), variants[cell.algo])
        found.append(_StyledCell(cell, labels[cell.protocol], drawn))
    return found


def _curves(here: Sequence[_StyledCell]) -> tuple[list[Curve], list[str]]:
    curves, missing = [], []
    for one in here:
        for run in one.cell.runs:
            try:
                curves.append(Curve(one.label, one.style, read_curve(run.path.with_name("curve.csv"))))
            except UserError as error:
                missing.append(f"{run.name}: no learning curve: {error}")
    return curves, missing


def _charts(here: Sequence[_StyledCell], curves: Sequence[Curve], anchor: str) -> Iterator[Chart]:
    setting = here[0].cell.setting
    if curves:
        ends = "; ".join(f"{c.label} ends at {100 * c.points[-1].val_accuracy:.1f} %" for c in curves if c.points)
        yield Chart(
            "Learning curves",
            learning_curves(curves, setting.ways, f"{anchor}-curves", f"Meta-validation accuracy by iteration: {ends}"),
            "Meta-validation accuracy (with markers) and meta-training accuracy (thin lines), one line per run.",
        )
    accuracies = [
        AccuracyPoint(one.label, one.style, one.cell.adapted_parameters, one.cell.mean, one.cell.ci95 or 0.0)
        for one in here
        if one.cell.adapted_parameters is not None
    ]
    if accuracies:
        values = "; ".join(f"{o.label}: {o.accuracy:.2f} % with {o.adapted_parameters:,} adapted" for o in accuracies)
        yield Chart(
            "Accuracy against adapted parameters",
            accuracy_by_parameters(accuracies, f"{anchor}-cost", f"Meta-test accuracy by adapted parameters: {values}"),
            "Meta-test accuracy with its 95 % interval over seeds and tasks together.",
        )

"""The charts of the report, as SVG within the page, in the colours of the page."""

from __future__ import annotations

import contextlib
import io
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from metakm.io.figure import import_matplotlib, new_figure
from metakm.run.curve import CurvePoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Drawn in the colours of the light page. Each becomes a CSS variable, which has two values in page.css.
INK, FAINT, PAPER = "#1b1f24", "#d5dae0", "#ffffff"
SERIES = ("#1f6fb2", "#c2481a", "#15805f", "#8a4fa3", "#8d6b00", "#127d8c", "#b83265", "#5c6670")
MARKERS = "osD^vPX*"
BINS = 41  # of a histogram
_variables = {
    INK: "--ink",
    "#000000": "--ink",
    "#0b5394": "--series-0",  # measured in the forest plot
    "#777777": "--soft",  # published there
    FAINT: "--faint",
    PAPER: "--paper",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES)},
}
_style: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "metakm",
    "text.color": INK,
    "text.parse_math": False,  # a label is a name, whatever characters it contains
    "xtick.color": INK,
    "ytick.color": INK,
}
_dashes = ("-", "--", "-.", ":")


class Chart(NamedTuple):
    """An SVG with its heading and explanation."""

    title: str
    svg: str
    caption: str


class LineStyle(NamedTuple):
    """How a protocol is drawn."""

    colour: str
    marker: str
    stroke: str


class Curve(NamedTuple):
    """The learning curve of one run."""

    label: str
    style: LineStyle
    points: Sequence[CurvePoint]


class AccuracyPoint(NamedTuple):
    """An accuracy and the half-width of its 95 % interval, in percent."""

    label: str
    style: LineStyle
    adapted_parameters: int
    accuracy: float
    ci95: float


def line_style(algo: int, variant: int) -> LineStyle:
    """The colour of the page's strategy number `algo`, with the marker and stroke of its variant in a setting."""
    return LineStyle(
        SERIES[algo % len(SERIES)], MARKERS[(algo + variant) % len(MARKERS)], _dashes[variant % len(_dashes)]
    )


def learning_curves(curves: Sequence[Curve], ways: int, name: str, description: str) -> str:
    """Meta-validation (marked) and meta-training (thin) accuracy by iteration, a line for each run."""

    def draw(axes: Axes) -> None:
        labelled = set()
        for label, (colour, marker, stroke), points in curves:
            trained = [(p.iteration, 100 * p.train_accuracy) for p in points if p.train_accuracy is not None]
            if trained:
                axes.plot(*zip(*trained, strict=True), color=colour, linestyle=stroke, linewidth=0.8, alpha=0.55)
            axes.plot(
                [p.iteration for p in points],
                [100 * p.val_accuracy for p in points],
                color=colour,
                marker=marker,
                linestyle=stroke,
                markersize=3.5,
                linewidth=1.6,
                label=None if label in labelled else label,
            )
            labelled.add(label)
        axes.axhline(100 / ways, color=INK, linestyle=":", linewidth=1, label="chance")
        axes.set(xlabel="iteration", ylabel="accuracy, %", ylim=(0, 100))
        axes.locator_params(axis="x", nbins=5, integer=True)
        axes.xaxis.set_major_formatter("{x:,.0f}")

    return _chart(draw, name, description)


def accuracy_by_parameters(points: Sequence[AccuracyPoint], name: str, description: str) -> str:
    """Accuracy with its interval against the number of adapted parameters; none at all is drawn at 1."""

    def draw(axes: Axes) -> None:
        counts = [max(point.adapted_parameters, 1) for point in points]
        for count, (label, drawn, _, accuracy, ci95) in zip(counts, points, strict=True):
            axes.errorbar(
                [count],
                [accuracy],
                yerr=[ci95],
                color=drawn.colour,
                marker=drawn.marker,
                markersize=6,
                capsize=3,
                linestyle="none",
                label=label,
            )
        decades = math.floor(math.log10(min(counts)) - 0.05), math.ceil(math.log10(max(counts)) + 0.05)
        axes.set(xscale="log", xlabel="adapted parameters", ylabel="accuracy, %", xlim=[10.0**d for d in decades])
        axes.xaxis.set_major_formatter("{x:,.0f}")

    return _chart(draw, name, description)


def histogram(groups: Mapping[str, npt.NDArray[Any]], name: str, description: str) -> str:
    """Histograms of several sets of weights on common bins, symmetric about 0; the first is filled, others outlined.

    At least 99.8 % of each set lie within the bins; the rest is not drawn.
    """
    reach = max(float(np.quantile(np.abs(weights), 0.998)) for weights in groups.values()) or 1.0
    edges = np.linspace(-reach, reach, BINS + 1)

    def draw(axes: Axes) -> None:
        for number, (label, weights) in enumerate(groups.items()):
            shares = 100 * np.histogram(weights, edges)[0] / weights.size
            drawn: dict[str, Any] = {"color": SERIES[number - 1], "linewidth": 1.3}
            if number == 0:
                drawn = {"color": INK, "alpha": 0.22, "fill": True}
            axes.stairs(shares, edges, label=label, **drawn)
        axes.set(xlabel="weight", ylabel="share of weights, %")
        axes.locator_params(axis="x", nbins=7)

    return _chart(draw, name, description)


def inline(svg: str, name: str, description: str) -> str:
    """Turn matplotlib's output into an `<svg>` element of the page.

    Its ids begin with `name`, its colours are the page's, text stays text, and screen readers get `description`.
    """
    box = re.search(r'viewBox="([^"]+)"', svg)
    assert box is not None, "matplotlib writes a viewBox"
    opening = f'<svg class="chart" role="img" aria-label="{escape(description)}" viewBox="{box[1]}"'
    drawn = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    drawn = re.sub(r"<svg [^>]*>", lambda _: f'{opening} xmlns:xlink="http://www.w3.org/1999/xlink">', drawn, count=1)
    drawn = re.sub(r'\b(?:id="|xlink:href="#)|url\(#', lambda found: f"{found[0]}{name}-", drawn)
    for colour, variable in _variables.items():
        drawn = drawn.replace(colour, f"var({variable})")
    return drawn


@contextlib.contextmanager
def page_style() -> Iterator[None]:
    """Within the block, matplotlib draws for a page."""
    with import_matplotlib().rc_context(_style):
        yield


def _chart(draw: Callable[[Axes], None], name: str, description: str) -> str:
    with page_style():
        figure = new_figure(figsize=(4.6, 3.3), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        handles, labels = axes.get_legend_handles_labels()
        longest = max((len(label) for label in labels), default=0)
        columns = 4 if longest <= 9 else 2 if longest <= 22 else 1
        wrapped = [textwrap.fill(label, 44) for label in labels]
        lines = math.ceil(sum(label.count("\n") + 1 for label in wrapped) / columns)
        figure.set_figheight(3.3 + 0.2 * max(0, lines - 3))  # else a long legend would leave no room for the axes
        figure.legend(handles, wrapped, loc="outside lower center", ncols=columns, handlelength=1.8)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return inline(buffer.getvalue(), name, description)

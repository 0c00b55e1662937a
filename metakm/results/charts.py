"""The charts of the report, as SVG that stands inside a page and takes its colours from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple

import matplotlib as mpl

from metakm.results.curve import CurvePoint
from metakm.results.kernels import Histograms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Drawn in the colours of the light page; each becomes a CSS variable, to which page.css gives two values.
INK, FAINT, PAPER = "#1b1f24", "#d5dae0", "#ffffff"
SERIES = ("#1f6fb2", "#c2481a", "#15805f", "#8a4fa3", "#8d6b00", "#127d8c", "#b83265", "#5c6670")
MARKERS = "osD^vPX*"
_variables = {
    INK: "--ink",
    "#000000": "--ink",
    FAINT: "--faint",
    PAPER: "--paper",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES)},
}
_style = {
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
    "xtick.color": INK,
    "ytick.color": INK,
}
_first = ("km", "anil", "maml")


class Look(NamedTuple):
    """How a strategy is drawn, the same in every chart of a page."""

    colour: str
    marker: str


class Curve(NamedTuple):
    """The learning curve of one run."""

    algo: str
    points: Sequence[CurvePoint]


class Outcome(NamedTuple):
    """A strategy's accuracy in a setting, with the half-width of its 95 % interval; fractions."""

    algo: str
    adapted_parameters: int
    accuracy: float
    ci95: float


def looks(algos: Iterable[str]) -> dict[str, Look]:
    """Colour and marker of each strategy: the paper's own first, then by name; from the ninth on they repeat."""
    order = sorted(set(algos), key=lambda algo: (_first.index(algo) if algo in _first else len(_first), algo))
    return {algo: Look(SERIES[n % len(SERIES)], MARKERS[n % len(MARKERS)]) for n, algo in enumerate(order)}


def learning_curves(curves: Sequence[Curve], ways: int, by: Mapping[str, Look], name: str, description: str) -> str:
    """Meta-validation (marked) and meta-training (thin) accuracy by iteration, a line for each run."""

    def paint(axes: Axes) -> None:
        labelled = set()
        for curve in curves:
            look, points = by[curve.algo], curve.points
            trained = [(p.iteration, 100 * p.train_accuracy) for p in points if p.train_accuracy is not None]
            if trained:
                axes.plot(*zip(*trained, strict=True), color=look.colour, linewidth=0.8, alpha=0.55)
            axes.plot(
                [p.iteration for p in points],
                [100 * p.val_accuracy for p in points],
                color=look.colour,
                marker=look.marker,
                markersize=3.5,
                linewidth=1.6,
                label=None if curve.algo in labelled else curve.algo,
            )
            labelled.add(curve.algo)
        axes.axhline(100 / ways, color=INK, linestyle=":", linewidth=1, label="chance")
        axes.set(xlabel="iteration", ylabel="accuracy, %", ylim=(0, 100))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.locator_params(axis="x", nbins=5, integer=True)

    return _chart(paint, name, description)


def accuracy_by_parameters(outcomes: Sequence[Outcome], by: Mapping[str, Look], name: str, description: str) -> str:
    """Accuracy with its interval against the number of adapted parameters."""

    def paint(axes: Axes) -> None:
        for outcome in outcomes:
            look = by[outcome.algo]
            axes.errorbar(
                [max(outcome.adapted_parameters, 1)],  # nothing adapted has no place on a logarithmic axis
                [100 * outcome.accuracy],
                yerr=[100 * outcome.ci95],
                color=look.colour,
                marker=look.marker,
                markersize=6,
                capsize=3,
                linestyle="none",
                label=outcome.algo,
            )
        axes.set(xscale="log", xlabel="adapted parameters", ylabel="accuracy, %")
        low, high = axes.get_xlim()
        axes.set_xlim(low / 2, high * 2)
        axes.grid(visible=False, axis="x", which="minor")

    return _chart(paint, name, description)


def kernel_histogram(counts: Histograms, colours: Mapping[str, str], name: str, description: str) -> str:
    """Outlines of histograms; the first one, the weights before modulation, is filled."""

    def paint(axes: Axes) -> None:
        first = next(iter(counts.shares))
        for label, shares in counts.shares.items():
            filled = label == first
            axes.stairs(
                shares,
                counts.edges,
                label=label,
                fill=filled,
                color=colours[label],
                alpha=0.3 if filled else 1.0,
                linewidth=1.3,
            )
        axes.set(xlabel="weight", ylabel="share of weights, %")
        axes.locator_params(axis="x", nbins=7)

    return _chart(paint, name, description)


def inline(figure: Figure, name: str, description: str) -> str:
    """A figure as an `<svg>` element: its ids begin with `name`, its text stays text, it says `description` aloud."""
    buffer = io.StringIO()
    with mpl.rc_context(_style):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawn = buffer.getvalue()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    drawn = re.sub(r'\b(id="|xlink:href="#)|url\(#', lambda found: f"{found[0]}{name}-", drawn)
    for colour, variable in _variables.items():
        drawn = drawn.replace(colour, f"var({variable})")
    box = re.search(r'viewBox="([^"]+)"', drawn)
    assert box is not None, "matplotlib writes a viewBox"
    opening = f'<svg class="chart" role="img" aria-label="{escape(description)}" viewBox="{box[1]}"'
    return re.sub(r"<svg [^>]*>", lambda _: f'{opening} xmlns:xlink="http://www.w3.org/1999/xlink">', drawn, count=1)


def _chart(paint: Callable[[Axes], None], name: str, description: str) -> str:
    from matplotlib.figure import Figure  # slow to import

    with mpl.rc_context(_style):
        figure = Figure(figsize=(4.6, 3.3), layout="constrained")
        axes = figure.subplots()
        paint(axes)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), handlelength=1.6)
        return inline(figure, name, description)

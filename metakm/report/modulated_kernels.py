"""Kernel weights before and after modulation, the paper's Fig. 3 for meta-learning (Hu & Liu, "Kernel Modulation")."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from metakm.report.charts import Chart, histogram
from metakm.table.collect import RecordedRun
from metakm.table.grids import Grid

Weights = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class LayerKernels:
    """The kernels of one convolution at five moments, each `[O, C, kh, kw]`, the last `[E, O, C, kh, kw]`.

    start, start_used: the W that meta-training starts from, and what the network convolves with there (W~).
    learned, learned_used: the same after meta-training, before adaptation.
    adapted: what the network convolves with after adaptation to each of E episodes.

    Without modulation, W itself is used.
    """

    layer: str
    start: Weights
    start_used: Weights
    learned: Weights
    learned_used: Weights
    adapted: Weights

    @property
    def modulated(self) -> bool:
        """Whether the network convolves with something other than W."""
        return not np.array_equal(self.learned, self.learned_used)

    @property
    def adapts(self) -> bool:
        """Whether adaptation changes the kernels that the network convolves with."""
        return bool((self.adapted != self.learned_used).any())

    @property
    def change(self) -> float:
        """Root mean square of the change by adaptation, relative to the kernels before it; mean over episodes."""
        step = np.sqrt(((self.adapted - self.learned_used) ** 2).mean(axis=(1, 2, 3, 4)))  # [E]
        return float(step.mean() / np.sqrt((self.learned_used**2).mean()))


@dataclass(frozen=True, eq=False)
class ShownKernels:
    """Kernels of one run that adaptation changes."""

    label: str
    run: RecordedRun
    modulated: bool  # the network convolves with something other than W
    charts: tuple[Chart, ...]
    grid: Grid  # a line for each layer


def show_kernels(
    shown: Sequence[tuple[str, RecordedRun, tuple[LayerKernels, ...]]], anchor: str
) -> tuple[ShownKernels, ...]:
    """Histograms of the kernels of each labelled run, without those that adaptation leaves unchanged."""
    found = []
    for number, (label, run, layers) in enumerate(shown):
        if any(layer.adapts for layer in layers):
            peers = [
                (other, theirs) for other, _, theirs in shown if other != label and _trained_in_full(theirs, layers)
            ]
            modulated = any(layer.modulated for layer in layers)
            charts = _charts(label, layers, peers, f"{anchor}-kernels-{number}")
            found.append(ShownKernels(label, run, modulated, tuple(charts), _grid(label, layers, modulated)))
    return tuple(found)


def _charts(
    label: str,
    layers: Sequence[LayerKernels],
    peers: Sequence[tuple[str, Sequence[LayerKernels]]],
    name: str,
) -> Iterator[Chart]:
    after = {"W": _flatten(layers, "learned")}
    if any(layer.modulated for layer in layers):
        start = {"W": _flatten(layers, "start"), "modulated W": _flatten(layers, "start_used")}
        yield Chart(
            "A: before meta-training",
            histogram(start, f"{name}-a", f"Kernel weights of {label} before meta-training: {_describe_std(start)}"),
            f"The initial weights. {_describe_modulation(layers, 'start', 'start_used')}",
        )
        after["modulated W"] = _flatten(layers, "learned_used")
    after[f"{list(after)[-1]}, adapted"] = _flatten(layers, "adapted")
    if len(after) > 2:
        after |= {f"W of {other}, adapted": _flatten(theirs, "adapted") for other, theirs in peers[:1]}
    yield Chart(
        "B: after meta-training" if len(after) > 2 else "After meta-training",
        histogram(after, f"{name}-b", f"Kernel weights of {label} after meta-training: {_describe_std(after)}"),
        "What the network convolves with before and after it adapted to the episodes above."
        + (f" {_describe_modulation(layers, 'learned', 'learned_used')}" if len(after) > 2 else ""),
    )


def _grid(label: str, layers: Sequence[LayerKernels], modulated: bool) -> Grid:
    used = ("Std of modulated W",) if modulated else ()
    header = ("Layer", "Weights", "Std of W", *used, "Std after adaptation", "Change, %")
    lines = []
    for layer in layers:
        weights = (layer.learned, *((layer.learned_used,) if modulated else ()), layer.adapted)
        spreads = (f"{moment.std():.4f}" for moment in weights)
        lines.append((layer.layer, f"{layer.learned.size:,}", *spreads, f"{100 * layer.change:.1f}"))
    return Grid(f"Kernels of {label} by layer", header, tuple(lines))


def _trained_in_full(theirs: Sequence[LayerKernels], ours: Sequence[LayerKernels]) -> bool:
    """Whether these are the same layers of a network whose kernels themselves were adapted."""
    shapes = [layer.learned.shape for layer in theirs] == [layer.learned.shape for layer in ours]
    return shapes and all(layer.adapts and not layer.modulated for layer in theirs)


def _flatten(layers: Sequence[LayerKernels], moment: str) -> Weights:
    """All weights of a moment, of all layers, flattened."""
    return np.concatenate([getattr(layer, moment).ravel() for layer in layers])


def _describe_modulation(layers: Sequence[LayerKernels], before: str, after: str) -> str:
    weights = _flatten(layers, before)
    share = np.sqrt(((_flatten(layers, after) - weights) ** 2).mean() / (weights**2).mean())
    return f"What modulation adds is {100 * share:.1f} % of W (root mean square)."


def _describe_std(groups: Mapping[str, Weights]) -> str:
    return "; ".join(f"standard deviation of {name} {weights.std():.4f}" for name, weights in groups.items())

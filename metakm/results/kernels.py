"""Kernel weights before and after modulation, the paper's Fig. 3 for meta-learning (Hu & Liu, "Kernel Modulation")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class LayerKernels:
    """The kernels of one convolution at five moments, each `[O, C, kh, kw]`, the last `[E, O, C, kh, kw]`.

    start, start_used: the random W that meta-training starts from, and what the network convolves with there (W~).
    learned, learned_used: the same after meta-training, before adaptation.
    adapted: what the network convolves with after adaptation to each of E episodes.

    Without modulation what is used is W itself.
    """

    layer: str
    start: Weights
    start_used: Weights
    learned: Weights
    learned_used: Weights
    adapted: Weights

    @property
    def modulated(self) -> bool:
        """Whether the network convolves with something else than W."""
        return not np.array_equal(self.learned, self.learned_used)

    @property
    def adapts(self) -> bool:
        """Whether adaptation changes what the network convolves with."""
        return bool((self.adapted != self.learned_used).any())

    @property
    def change(self) -> float:
        """Root mean square of what adaptation adds, over that of the kernels before it; the mean over episodes."""
        step = np.sqrt(((self.adapted - self.learned_used) ** 2).mean(axis=(1, 2, 3, 4)))  # [E]
        return float(step.mean() / np.sqrt((self.learned_used**2).mean()))


@dataclass(frozen=True, eq=False)
class Histograms:
    """Shares of weights, in per cent, by common bins: `shares[name]` is `[bins]`, `edges` `[bins + 1]`.

    Weights beyond the outermost edges are counted in the outermost bins.
    """

    edges: Weights
    shares: dict[str, Weights]


def joined(layers: Sequence[LayerKernels], moment: str) -> Weights:
    """All weights of a moment, over all layers, flat."""
    return np.concatenate([getattr(layer, moment).ravel() for layer in layers])


def histograms(groups: dict[str, Weights], bins: int = 61) -> Histograms:
    """Histograms of several sets of weights on bins that hold 99.8 % of each of them and are symmetric about 0."""
    reach = max(float(np.quantile(np.abs(weights), 0.998)) for weights in groups.values())
    edges = np.linspace(-reach, reach, bins + 1) if reach else np.linspace(-1.0, 1.0, bins + 1)
    return Histograms(
        edges,
        {
            name: 100 * np.histogram(np.clip(weights, edges[0], edges[-1]), edges)[0] / weights.size
            for name, weights in groups.items()
        },
    )

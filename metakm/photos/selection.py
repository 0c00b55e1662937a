"""Evaluates methods on held-out photos and chooses one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metakm.photos.calibration import nll, temperature
from metakm.photos.methods import MethodName
from metakm.photos.training import TrainingState
from metakm.photos.validation import HeldOutSplit


@dataclass(frozen=True)
class HeldOut:
    """A method's answers to photos that were held out.

    Attributes:
        numbers: of the photos, `[m]`.
        logits: `[m, N]`, of the fit that did not see them.
        labels: `[m]`.
        evaluation: which evaluation they are of; the final fit stops there.
        temperature: that calibrates them.
    """

    method: MethodName
    numbers: list[int]
    logits: Tensor
    labels: Tensor
    evaluation: int
    temperature: float

    @property
    def right(self) -> Tensor:
        """Which answers are right, `[m]`."""
        return self.logits.argmax(dim=1) == self.labels

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(self.right.double().mean())

    @property
    def nll(self) -> float:
        """Negative log-likelihood at the temperature."""
        return nll(self.logits, self.labels, self.temperature)

    @property
    def probabilities(self) -> Tensor:
        """Calibrated, `[m, N]`."""
        return torch.softmax(self.logits.double() / self.temperature, dim=1)


def judge(
    method: MethodName, splits: Sequence[HeldOutSplit], states: Sequence[TrainingState], labels: Tensor
) -> HeldOut:
    """The answers of the evaluation with the least negative log-likelihood; a later one has to be better by 1 %."""
    numbers = [number for split in splits for number in split.held_out]
    best: HeldOut | None = None
    for evaluation in range(len(states[0].evaluations)):
        logits = torch.cat([state.evaluations[evaluation][1] for state in states])
        scaled_by = temperature(logits, labels[numbers])
        found = HeldOut(method, numbers, logits, labels[numbers], evaluation, scaled_by)
        if best is None or found.nll < 0.99 * best.nll:
            best = found
    assert best is not None, "a fit classifies what is held out at its start"
    return best


def best_of(found: Mapping[MethodName, HeldOut]) -> HeldOut:
    """The method with the least negative log-likelihood: of few photos it says more than the share of right answers."""
    return min(found.values(), key=lambda each: each.nll)


def comparison(found: Mapping[MethodName, HeldOut], best: HeldOut) -> list[str]:
    """A line for each method, with its distance to the one taken and the standard error of that, in points."""
    lines = []
    for method, each in sorted(found.items(), key=lambda item: item[1].nll):
        line = f"{method:<8} {100 * each.accuracy:5.1f} % correct, negative log-likelihood {each.nll:.3f}"
        if each is best:
            lines.append(f"{line} (chosen)")
            continue
        apart = 100 * (each.right.double() - best.right.double())
        error = float(apart.std()) / math.sqrt(len(apart)) if len(apart) > 1 else 0.0
        lines.append(f"{line}; {float(apart.mean()):+.1f} ± {error:.1f} points")
    return lines

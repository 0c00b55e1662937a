"""Statistics of accuracies: intervals over tasks, over seeds, and of paired differences.

An interval over tasks says how far the mean would move with other meta-test tasks, for the models as trained.
An interval over seeds says how far it would move with other initial weights and meta-training episodes.
Together they say how far it would move with both: their half-widths add in quadrature, without what both contain
(`combined_interval`).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from metakm.errors import UserError

Verdict = Literal["above", "below", "within noise", "one seed"]


def interval_over_tasks(accuracies: npt.NDArray[np.float64], datasets: int = 1) -> float:
    """Half-width of the 95 % interval of the mean over tasks, 1.96 std / sqrt(n) (Finn et al. 2017).

    If the tasks come from datasets that alternate, the share of each is fixed, so the difference between the datasets
    does not widen the interval: with n_d tasks of dataset d, it is 1.96 sqrt(sum_d n_d std_d^2) / n.

    Args:
        accuracies: `[n]` with n at least 2, one value per task; std is the sample's (n - 1).
        datasets: task i is of dataset i modulo this number. If one has fewer than 2 tasks, all count as one dataset.
    """
    parts = [accuracies[number::datasets] for number in range(datasets)]
    if min(map(len, parts)) < 2:
        parts = [accuracies]
    return float(1.96 * math.sqrt(sum(len(part) * part.var(ddof=1) for part in parts)) / len(accuracies))


def interval_over_seeds(means: npt.NDArray[np.float64]) -> float | None:
    """Half-width of the 95 % Student-t interval of the mean over seeds, t(0.975, n - 1) std / sqrt(n).

    Args:
        means: `[n]`, one mean accuracy per seed; std is the sample's (n - 1). None for fewer than 2.
    """
    from scipy.special import stdtrit  # Student's t quantile; scipy.stats, which wraps it, is slow to import

    n = len(means)
    if n < 2:
        return None
    return float(stdtrit(n - 1, 0.975) * means.std(ddof=1) / math.sqrt(n))


def residual_interval(accuracies: npt.NDArray[np.float64]) -> float | None:
    """What the intervals over seeds and over tasks both contain: 1.96 sqrt(r / (S n)).

    r is the variance that is left when each seed's mean and each task's are taken off. None for one seed.

    Args:
        accuracies: `[S, n]`, seed by task, or differences of them.
    """
    if len(accuracies) < 2:
        return None
    residual = (accuracies - accuracies.mean(axis=1, keepdims=True)).var(axis=0, ddof=1).mean()
    return float(1.96 * np.sqrt(residual / accuracies.size))


def combined_interval(
    over_seeds: float | None, over_tasks: float | None, residual: float | None = None
) -> float | None:
    """Half-width of the 95 % interval with other seeds and other tasks, sqrt(over_seeds^2 + over_tasks^2 - residual^2).

    With one seed there is the interval over tasks alone, which holds for these trained models. None without either.

    In a model of accuracies with an effect of the seed, one of the task and a residual, variances s, t and r, the mean
    over S seeds and n tasks has variance s/S + t/n + r/(S n). The interval over seeds estimates s/S + r/(S n), as all
    seeds meet the same tasks, and that over tasks t/n + r/(S n); `residual` is r/(S n). In simulations with 2, 3 and 5
    seeds the interval of a difference holds the true one in 94 to 98 % of cases (tests/learning/test_statistics.py);
    counting the residual twice, in more.

    Args:
        residual: see `residual_interval`.
    """
    if over_seeds is None or over_tasks is None:
        return over_tasks if over_seeds is None else over_seeds
    return math.sqrt(max(0.0, over_seeds**2 + over_tasks**2 - (residual or 0.0) ** 2))


def verdict(difference: float, ci95: float | None, seeds: int) -> Verdict:
    """Above or below if the difference exceeds its interval over seeds and tasks.

    One seed tells at most that these trained models differ, not that the methods do.
    """
    if ci95 is None or abs(difference) <= ci95:
        return "within noise"
    if seeds < 2:
        return "one seed"
    return "above" if difference > 0 else "below"


class PairedDifference(NamedTuple):
    """Mean of `first - second`, with half-widths of 95 % intervals; None where there is but one value.

    `residual_ci95` is `residual_interval` of the differences. `freedom` is the degrees of freedom of `seeds_ci95`, for
    each seed but one: 2 if both strategies vary alike between seeds, 1 if one of them does not vary.
    """

    mean: float
    tasks_ci95: float | None
    seeds_ci95: float | None
    residual_ci95: float | None
    freedom: float = 2.0

    @property
    def ci95(self) -> float | None:
        """See `combined_interval`."""
        return combined_interval(self.seeds_ci95, self.tasks_ci95, self.residual_ci95)


def paired_difference(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], datasets: int = 1
) -> PairedDifference:
    """Compare two strategies on the same tasks.

    Over tasks: the differences are averaged over seeds, task by task, and `interval_over_tasks` taken of the n
    values. Over seeds: accuracies are averaged over tasks, seed by seed, and Welch's t interval (1947) taken of the
    difference of two independent samples of S values: two strategies with one seed have nothing in common but the order
    of the episodes, and one may vary more from seed to seed than the other.

    Args:
        first: accuracies `[S, n]`, seed by task.
        second: `[S, n]`, of the same seeds and tasks in the same order.
        datasets: see `interval_over_tasks`.

    Raises:
        UserError: the shapes differ, or there is no value.
    """
    if first.shape != second.shape or first.ndim != 2 or first.size == 0:
        raise UserError(
            f"Expected accuracies [S, n] of the same seeds and tasks, got {list(first.shape)} and "
            f"{list(second.shape)}; pair them first"
        )
    differences = first - second  # [S, n]
    by_task = differences.mean(axis=0)
    tasks_ci95 = interval_over_tasks(by_task, datasets) if len(by_task) > 1 else None
    seeds_ci95, freedom = _interval_of_two_samples(first.mean(axis=1), second.mean(axis=1))
    return PairedDifference(float(differences.mean()), tasks_ci95, seeds_ci95, residual_interval(differences), freedom)


def _interval_of_two_samples(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]
) -> tuple[float | None, float]:
    """Half-width of the 95 % interval of the difference of means, t(0.975, f (S - 1)) sqrt((v + w) / S); and f.

    v and w are the variances, and f = (v + w)^2 / (v^2 + w^2).
    """
    from scipy.special import stdtrit  # see interval_over_seeds

    n = len(first)
    if n < 2:
        return None, 2.0
    v, w = float(first.var(ddof=1)), float(second.var(ddof=1))
    freedom = (v + w) ** 2 / (v**2 + w**2) if v**2 + w**2 > 0 else 2.0
    return float(stdtrit(freedom * (n - 1), 0.975) * math.sqrt((v + w) / n)), freedom


def seeds_to_tell(difference: PairedDifference, seeds: int) -> int | None:
    """The smallest number of seeds whose combined interval leaves out zero, if all else stays as it was measured.

    Then the interval over tasks, without the residual, stays what it is, and that over seeds shrinks.

    Args:
        difference: of `seeds` seeds.

    Returns:
        None with one seed, where more tasks are needed, or for more than 1,000 seeds.
    """
    from scipy.special import stdtrit  # see interval_over_seeds

    d = difference
    if d.seeds_ci95 is None:
        return None
    room = d.mean**2 - max(0.0, (d.tasks_ci95 or 0.0) ** 2 - (d.residual_ci95 or 0.0) ** 2)  # for what shrinks
    deviation = d.seeds_ci95 * math.sqrt(seeds) / stdtrit(d.freedom * (seeds - 1), 0.975)
    widths = ((n, (stdtrit(d.freedom * (n - 1), 0.975) * deviation) ** 2 / n) for n in range(2, 1001))
    return next((n for n, width in widths if width < room), None)

"""Statistics of accuracies."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def interval_over_tasks(accuracies: npt.NDArray[np.float64]) -> float:
    """Half-width of the 95 % interval of the mean over tasks, 1.96 std / sqrt(n) (Finn et al. 2017).

    Args:
        accuracies: `[n]` with n at least 2, one value a task; std is the sample's (n - 1).
    """
    return float(1.96 * accuracies.std(ddof=1) / np.sqrt(len(accuracies)))

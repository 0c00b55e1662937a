"""Accuracy of a strategy over many tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from metakm.data import EpisodeSource
from metakm.errors import UserError
from metakm.learning.inner_loop import evaluate_episodes
from metakm.learning.memory import halved, is_out_of_memory
from metakm.learning.statistics import interval_over_tasks
from metakm.strategies import Strategy
from metakm.strategies.interfaces import InnerLR

# Meta-validation and meta-test episodes are the same for every run, strategy and seed, so that accuracies can be
# compared in pairs.
EVALUATION_SEED = 0


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of a learner on a number of tasks.

    Attributes:
        accuracies: fraction of queries that are right, float64 `[tasks]`.
        datasets: task i is of dataset i modulo this number.
    """

    accuracies: npt.NDArray[np.float64]
    datasets: int = 1

    @property
    def accuracy(self) -> float:
        """Mean over the tasks."""
        return float(self.accuracies.mean())

    @property
    def interval(self) -> float | None:
        """Half-width of the 95 % interval of that mean over tasks; None for a single task."""
        return interval_over_tasks(self.accuracies, self.datasets) if len(self.accuracies) > 1 else None

    def __repr__(self) -> str:
        half = "None" if self.interval is None else f"{self.interval:.4f}"
        return f"Evaluation(accuracy={self.accuracy:.4f}, interval={half}, tasks={len(self.accuracies)})"


def accuracies(
    strategy: Strategy,
    sampler: EpisodeSource,
    *,
    tasks: int,
    first: int = 0,
    inner_lr: InnerLR,
    inner_steps: int,
    chunk: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int], None] = lambda _: None,
) -> npt.NDArray[np.float64]:
    """Query accuracy of episodes first..first+tasks-1, float64 `[tasks]`, in evaluation mode; the mode is restored.

    Args:
        chunk: tasks at a time; half as many from the moment on that memory runs out.
        dtype: precision of the images, and so of the convolutions.
        progress: called with the number of tasks just done.

    Raises:
        UserError: a sampler without `batch`, such as a dataset.
        TooLittleMemoryError: a single task does not fit into memory.
    """
    if not hasattr(sampler, "batch"):
        made = "metakm.EpisodeSampler(dataset, ways=..., shots=..., queries=...)"
        raise UserError(f"Expected a sampler of episodes, got {type(sampler).__name__}; make one: {made}")
    modes = [(module, module.training) for module in strategy.modules()]
    strategy.eval()
    done = [torch.empty(0, dtype=torch.float64)]
    start = 0
    try:
        while start < tasks:
            count = min(chunk, tasks - start)
            try:
                episodes = sampler.batch(index=first + start, tasks=count).to(device, dtype)
                result = evaluate_episodes(strategy, episodes, inner_lr=inner_lr, inner_steps=inner_steps)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                chunk = halved(count)
                continue
            done.append(result.accuracy.cpu())
            start += count
            progress(count)
    finally:
        for module, training in modes:
            module.training = training
    return torch.cat(done).numpy()

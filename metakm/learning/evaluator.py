"""Evaluation of a run: on its device, by all its processes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from metakm.data import EpisodeSource
from metakm.distributed.processes import ALONE, Processes
from metakm.learning.evaluation import accuracies
from metakm.learning.inner_rates import head_rates
from metakm.learning.learner import Learner
from metakm.learning.memory import TaskChunks, TooLittleMemoryError


class Evaluator:
    """Tests a run's learner on its device, over all its processes.

    Args:
        chunks: how many tasks fit into memory.
        dtype: of the images, see `compute_dtype`.
    """

    def __init__(
        self,
        learner: Learner,
        chunks: TaskChunks,
        device: torch.device,
        dtype: torch.dtype,
        processes: Processes = ALONE,
    ) -> None:
        self.learner, self.chunks, self.device, self.dtype = learner, chunks, device, dtype
        self.processes = processes

    def accuracies(
        self,
        sampler: EpisodeSource,
        tasks: int,
        progress: Callable[[int], None] = lambda _: None,
        inner_steps: int | None = None,
        *,
        head_only: bool = False,
    ) -> npt.NDArray[np.float64]:
        """Query accuracies `[tasks]` on the sampler's first episodes, the same on all processes.

        Args:
            progress: called with the number of tasks just done, by all processes.
            inner_steps: None for the learner's `test_inner_steps`.
            head_only: adapt nothing but the head.

        Raises:
            StopIteration: on all processes if `progress` raises it on any.
            TooLittleMemoryError: a single task does not fit into memory.
            UserError: `head_only` with a strategy whose inner loop adapts no head.
        """
        learner = self.learner
        inner_lr = head_rates(learner.strategy, learner.inner_lr) if head_only else learner.inner_lr
        mine = self.processes.shard(tasks)
        with (
            self.processes.share_progress(tasks, progress) as advance,
            self.processes.raise_together(StopIteration, TooLittleMemoryError),
        ):
            own = accuracies(
                learner.strategy,
                sampler,
                first=mine.start,
                tasks=len(mine),
                inner_lr=inner_lr,
                inner_steps=learner.test_inner_steps if inner_steps is None else inner_steps,
                chunk=self.chunks.testing,
                device=self.device,
                dtype=self.dtype,
                progress=advance,
            )
        return np.concatenate(self.processes.gather(own))

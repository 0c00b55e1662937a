"""Meta-training: one optimiser step on the meta-gradient of one batch of episodes, accuracies, the state to resume."""

from __future__ import annotations

import contextlib
import math
import operator
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from metakm.config import RunConfig
from metakm.data.episodes import Episodes, EpisodeSource, SplitSampler
from metakm.device import compute_dtype
from metakm.distributed.processes import ALONE, Processes
from metakm.learning.cuda_graphs import CudaGraphs, MetaGradient
from metakm.learning.divergence import DivergedError, is_finite
from metakm.learning.ema import ParameterAverage
from metakm.learning.evaluator import Evaluator
from metakm.learning.learner import Learner
from metakm.learning.memory import TaskChunks, TooLittleMemoryError, halved, is_out_of_memory
from metakm.learning.randomness import own_randomness


class StepResult(NamedTuple):
    """Means over the tasks of one meta-batch, before the step."""

    loss: float
    accuracy: float


class OuterLoop:
    """Adam on the meta-gradient (Finn et al. 2017, Algorithm 2, line 10).

    Iteration i learns from training episodes i*meta_batch, ..., (i+1)*meta_batch - 1; nothing else is random, so the
    state is the parameters, Adam's moments and the iteration. Of several processes each differentiates its part of the
    meta-batch; the state is the same on all. With `config.ema` an average of the parameters is what is evaluated.
    """

    def __init__(
        self,
        learner: Learner,
        sampler: SplitSampler,
        config: RunConfig,
        device: torch.device,
        processes: Processes = ALONE,
    ) -> None:
        self.processes = processes
        self.learner, self.sampler, self.config, self.device = learner.to(device), sampler, config, device
        self._learned = learner.meta_parameters()
        self.optimiser = torch.optim.Adam(self._learned, lr=config.meta_lr)
        self._average = ParameterAverage(self._learned, config.ema) if config.ema else None
        self.chunks = TaskChunks(learner.strategy, sampler.dataset.image_shape, config, device)
        self.evaluator = Evaluator(learner, self.chunks, device, compute_dtype(config.precision), processes)
        eager = config.eager or config.varies or config.shared.multi_step_loss or learner.strategy.uses_progress
        use_graphs = learner.strategy.supports_cuda_graph and not eager and device.type == "cuda"
        self._graphs = CudaGraphs() if use_graphs else None
        self.iteration = 0

    def step(self) -> StepResult:
        """Learn from the next meta-batch.

        Raises:
            DivergedError: the loss or a gradient is not finite; the parameters are unchanged.
            TooLittleMemoryError: a single task does not fit into memory.
        """
        with own_randomness(self.config.seed, self.iteration, self.device):
            return self._step()

    def _step(self) -> StepResult:
        if self._graphs and self._second_order_begins:
            self._graphs.clear()
        episodes = self.sampler.batch(self.iteration * self.config.meta_batch, self.config.meta_batch)
        result = self._meta_gradient(episodes)
        if not is_finite(result.loss, self._learned):
            raise DivergedError(self._divergence(episodes, result.loss))
        self._apply()
        if "running" in self.learner.strategy.bn_modes:
            with self._evaluated(), own_randomness(self.config.seed, self.iteration, self.device, "statistics"):
                self.learner.strategy.track_statistics(episodes.query_images.to(self.device, self.evaluator.dtype))
        self.iteration += 1
        return result

    def accuracies(
        self,
        sampler: EpisodeSource,
        tasks: int,
        progress: Callable[[int], None] = lambda _: None,
        inner_steps: int | None = None,
    ) -> npt.NDArray[np.float64]:
        """Accuracies `[tasks]` of the model, averaged with `config.ema`: see `Evaluator.accuracies`."""
        with self._evaluated():
            return self.evaluator.accuracies(sampler, tasks, progress, inner_steps)

    def trial_seconds(self) -> float:
        """Wall time of one iteration's meta-gradient, after one to warm up, or two on a GPU; changes nothing."""
        episodes = self.sampler.batch(index=0, tasks=self.config.meta_batch)
        before = {name: buffer.clone() for name, buffer in self.learner.named_buffers()}
        if self._graphs:
            self._graphs.clear()  # maybe of a trial at another iteration
        for _ in range(2 if self.device.type == "cpu" else 3):  # on a GPU the second is captured, the third replayed
            began = time.monotonic()
            self._meta_gradient(episodes)
        seconds = time.monotonic() - began
        self.optimiser.zero_grad()
        for name, buffer in self.learner.named_buffers():  # a network may count or average in its forward
            buffer.copy_(before[name])
        return seconds

    def _meta_gradient(self, episodes: Episodes) -> StepResult:
        """Leave the meta-gradient in the parameters' `grad`."""
        mine = self.processes.shard(len(episodes))
        with self.processes.raise_together(TooLittleMemoryError):
            part = self._partial_gradient(episodes[mine.start : mine.stop], len(episodes))
        self.processes.sum_gradients(self._learned)
        return StepResult(*self.processes.sum(*part))

    def _partial_gradient(self, episodes: Episodes, tasks: int) -> StepResult:
        """Leave what these episodes give to the gradient of `tasks`. Out of memory, begin again with half the chunk."""
        while True:
            try:
                return self._sum_over_chunks(episodes, tasks)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            if self._graphs:
                self._graphs.clear()
            self.chunks.training = halved(min(self.chunks.training, len(episodes)))

    def _sum_over_chunks(self, episodes: Episodes, tasks: int) -> StepResult:
        self.learner.train()
        self.optimiser.zero_grad()
        loss = accuracy = 0.0
        for chunk in episodes.chunks(self.chunks.training):
            here = chunk.to(self.device, self.evaluator.dtype)
            part = self._graphs.run(self._differentiate, here) if self._graphs else self._differentiate(here)
            share = len(chunk) / tasks
            for parameter, gradient in zip(self._learned, part.gradients, strict=True):
                if gradient is not None:
                    scaled = gradient.contiguous() if share == 1 else gradient * share
                    parameter.grad = scaled if parameter.grad is None else parameter.grad + scaled
            loss += float(part.loss) * share
            accuracy += float(part.accuracy.sum()) / tasks
        return StepResult(loss, accuracy)

    def _differentiate(self, episodes: Episodes) -> MetaGradient:
        """The meta-gradient of episodes that are on the device."""
        result = self.learner.meta_loss(episodes, self._step_weights(), self.progress)
        wanted = [p for p in self._learned if p.requires_grad]
        gradients = iter(torch.autograd.grad(result.loss, wanted, allow_unused=True))
        of_each = tuple(next(gradients) if p.requires_grad else None for p in self._learned)
        return MetaGradient(result.loss.detach(), result.accuracy, of_each)

    def _apply(self) -> None:
        if self.config.grad_clip:
            nn.utils.clip_grad_value_(self._learned, self.config.grad_clip)
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.meta_lr * self._decay()
        self.optimiser.step()
        if self.config.shared.nonnegative_inner_lr:
            with torch.no_grad():
                for rate in self.learner.rates:
                    rate.clamp_(min=0.0)
        if self._average is not None:
            self._average.update(self.iteration + 1)

    def _evaluated(self) -> contextlib.AbstractContextManager[None]:
        """In the block the parameters are those that are evaluated."""
        return contextlib.nullcontext() if self._average is None else self._average.applied()

    @property
    def progress(self) -> float:
        """The part of the iterations that is done, from 0 to 1."""
        return self.iteration / max(1, self.config.iterations)

    @property
    def _second_order_begins(self) -> bool:
        """Whether this iteration is the first one with second-order gradients, after first-order ones."""
        before = max(0, self.iteration - 1) / max(1, self.config.iterations)
        return before < self.config.shared.second_order_from <= self.progress

    def _step_weights(self) -> list[float] | None:
        """Of the loss after each inner step: equal at first, all on the last from iteration `multi_step_loss` on."""
        steps, left = self.config.inner_steps, self.config.shared.multi_step_loss - self.iteration
        if left <= 0 or steps == 1:
            return None
        earlier = left / self.config.shared.multi_step_loss / steps
        return [earlier] * (steps - 1) + [1 - (steps - 1) * earlier]

    def _decay(self) -> float:
        if self.config.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * self.iteration / max(1, self.config.iterations)))

    def _divergence(self, episodes: Episodes, loss: float) -> str:
        """Say which episodes are to blame, by running each on its own."""
        learned = self._learned
        blamed = [one.index[0] for one in episodes.chunks(1) if not is_finite(self._meta_gradient(one).loss, learned)]
        first, last = episodes.index[0], episodes.index[-1]
        named = f"episode{'s' if len(blamed) > 1 else ''} {', '.join(map(str, blamed))}"
        if not blamed:
            named = f"episodes {first} to {last} together" if last > first else f"episode {first}"
        return (
            f"The meta-loss ({loss:g}) or its gradient is not finite at iteration {self.iteration}, because of "
            f"meta-training {named}; try a smaller --inner-lr or --meta-lr"
        )

    def model_state(self) -> dict[str, Tensor]:
        """Everything that predictions depend on, with the parameters that are evaluated; on the CPU."""
        with self._evaluated():
            return _copied(self.learner.state_dict())

    def load_model_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of `model_state`; an average starts again from it."""
        self.learner.load_state_dict(state)
        if self._average is not None:
            self._average.reset()

    def state(self) -> dict[str, Any]:
        """Everything that the next steps depend on, loadable with `weights_only=True`."""
        average = {} if self._average is None else {"average": [value.cpu() for value in self._average.values]}
        learned, moments = _copied(self.learner.state_dict()), self.optimiser.state_dict()
        return {"model": learned, "optimiser": moments, "iteration": self.iteration, **average}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `state`.

        Raises:
            RuntimeError, LookupError, ValueError, TypeError, AttributeError: the state is not of this strategy.
        """
        self.load_model_state(state["model"])
        if self._average is not None:
            self._average.load(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        for parameter, moments in self.optimiser.state.items():  # torch does not check them
            if not moments["exp_avg"].shape == moments["exp_avg_sq"].shape == parameter.shape:
                raise ValueError(f"Adam's moments do not fit a parameter of {list(parameter.shape)}")
        self.iteration = operator.index(state["iteration"])


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

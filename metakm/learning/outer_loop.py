"""Meta-training: one optimiser step on the meta-gradient of one batch of episodes, accuracies, the state to resume."""

from __future__ import annotations

import contextlib
import math
import operator
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from metakm.config import RunConfig
from metakm.data import Episodes, EpisodeSampler, EpisodeSource
from metakm.distributed.processes import ALONE, Processes
from metakm.distributed.torchrun import processes_here
from metakm.learning.cuda_graphs import CudaGraphs, MetaGradient
from metakm.learning.ema import ParameterAverage
from metakm.learning.evaluation import accuracies
from metakm.learning.inner_loop import InnerLR, meta_loss
from metakm.learning.inner_rates import InnerRates
from metakm.learning.memory import TooLittleMemoryError, automatic_chunk, halved, is_out_of_memory, sharing, task_bytes
from metakm.strategies import Strategy

TESTED_AT_ONCE = 64  # tasks, on a GPU that has the memory


class DivergedError(RuntimeError):
    """The meta-loss or the meta-gradient is not finite."""


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
        strategy: Strategy,
        sampler: EpisodeSampler,
        config: RunConfig,
        device: torch.device,
        processes: Processes = ALONE,
    ) -> None:
        self.processes = processes
        self.strategy, self.sampler, self.config, self.device = strategy.to(device), sampler, config, device
        options = config.shared
        self.rates = InnerRates(strategy, config).to(device) if options.learn_inner_lr else None
        fixed = {id(parameter) for parameter in strategy.head_parameters().values()} if options.zero_head else set()
        # All that the outer loop learns; a head that starts at zero in every task has nothing to learn.
        self._learned = [p for p in strategy.parameters() if id(p) not in fixed] + self.inner_rates()
        self.optimiser = torch.optim.Adam(self._learned, lr=config.meta_lr)
        self._average = ParameterAverage(self._learned, config.ema) if config.ema else None
        self.task_bytes = task_bytes(strategy, sampler.dataset.image_shape, config, device)
        self._sharing = sharing(device, processes_here())
        self.chunk = config.task_chunk or self._automatic_chunk(config.meta_batch)
        self.dtype = torch.bfloat16 if config.precision == "bf16" else torch.get_default_dtype()
        recorded = strategy.supports_cuda_graph and not (config.eager or options.multi_step_loss)
        self._graphs = CudaGraphs() if recorded and device.type == "cuda" else None
        self.iteration = 0

    @property
    def inner_lr(self) -> InnerLR:
        """The rate or rates of the inner loop."""
        return list(self.rates.rates) if self.rates else self.config.inner_lr

    @property
    def test_chunk(self) -> int:
        """Tasks to test at once: more on a GPU, as testing keeps no graph across steps and few leave it idle."""
        if self.device.type == "cpu" or self.config.task_chunk:
            return self.chunk
        return max(self.chunk, self._automatic_chunk(TESTED_AT_ONCE))

    def _automatic_chunk(self, tasks: int) -> int:
        return automatic_chunk(self.task_bytes * self._sharing, tasks, self.device)

    def step(self) -> StepResult:
        """Learn from the next meta-batch.

        Raises:
            DivergedError: the loss or a gradient is not finite; the parameters are unchanged.
            TooLittleMemoryError: a single task does not fit into memory.
        """
        first = self.iteration * self.config.meta_batch
        episodes = self.sampler.batch(index=first, tasks=self.config.meta_batch)
        result = self._meta_gradient(episodes)
        if not self._finite(result.loss):
            raise DivergedError(self._divergence(episodes, result.loss))
        self._apply()
        if "running" in self.strategy.bn_modes:
            with self._evaluated():
                self.strategy.track_statistics(episodes.query_images.to(self.device, self.dtype))
        self.iteration += 1
        return result

    def accuracies(
        self, sampler: EpisodeSource, tasks: int, progress: Callable[[int], None] = lambda _: None
    ) -> npt.NDArray[np.float64]:
        """Query accuracies `[tasks]` of the model, averaged with `config.ema`, on the sampler's first episodes.

        Args:
            progress: called with the number of tasks just done, by all processes.

        Raises:
            StopIteration: on all processes if `progress` raises it on any.
            TooLittleMemoryError: a single task does not fit into memory.
        """
        mine = self.processes.shard(tasks)
        with (
            self.processes.counting(tasks, progress) as advance,
            self.processes.raise_together(StopIteration, TooLittleMemoryError),
            self._evaluated(),
        ):
            own = accuracies(
                self.strategy,
                sampler,
                first=mine.start,
                tasks=len(mine),
                inner_lr=self.inner_lr,
                inner_steps=self.config.test_inner_steps,
                chunk=self.test_chunk,
                device=self.device,
                dtype=self.dtype,
                progress=advance,
            )
        return np.concatenate(self.processes.gather(own))

    def trial_seconds(self) -> float:
        """Wall time of one iteration's meta-gradient, after one to warm up, or two on a GPU; changes nothing."""
        episodes = self.sampler.batch(index=0, tasks=self.config.meta_batch)
        for _ in range(2 if self.device.type == "cpu" else 3):  # on a GPU the second is recorded, the third replayed
            began = time.monotonic()
            self._meta_gradient(episodes)
        self._forget_gradients()
        return time.monotonic() - began

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
            self.chunk = halved(min(self.chunk, len(episodes)))

    def _sum_over_chunks(self, episodes: Episodes, tasks: int) -> StepResult:
        self.strategy.train()
        self._forget_gradients()
        loss = accuracy = 0.0
        for chunk in episodes.chunks(self.chunk):
            here = chunk.to(self.device, self.dtype)
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
        config = self.config
        result = meta_loss(
            self.strategy,
            episodes,
            inner_lr=self.inner_lr,
            inner_steps=config.inner_steps,
            first_order=config.shared.first_order,
            step_weights=self._step_weights(),
        )
        wanted = [p for p in self._learned if p.requires_grad]
        gradients = iter(torch.autograd.grad(result.loss, wanted, allow_unused=True))
        of_each = tuple(next(gradients) if p.requires_grad else None for p in self._learned)
        return MetaGradient(result.loss.detach(), result.accuracy, of_each)

    def _forget_gradients(self) -> None:
        for parameter in self._learned:
            parameter.grad = None

    def _apply(self) -> None:
        if self.config.grad_clip:
            nn.utils.clip_grad_value_(self._learned, self.config.grad_clip)
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.meta_lr * self._decay()
        self.optimiser.step()
        if self.config.shared.nonnegative_inner_lr:
            with torch.no_grad():
                for rate in self.inner_rates():
                    rate.clamp_(min=0.0)
        if self._average is not None:
            self._average.update(self.iteration + 1)

    def _evaluated(self) -> contextlib.AbstractContextManager[None]:
        """In the block the parameters are those that are evaluated."""
        return contextlib.nullcontext() if self._average is None else self._average.applied()

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

    def _finite(self, loss: float) -> bool:
        gradients = [p.grad.reshape(-1) for p in self._learned if p.grad is not None]
        return math.isfinite(loss) and bool(torch.cat(gradients).isfinite().all())  # one look: each waits for a GPU

    def _divergence(self, episodes: Episodes, loss: float) -> str:
        """Say which episodes are to blame, by running each on its own."""
        blamed = [
            episode.index[0] for episode in episodes.chunks(1) if not self._finite(self._meta_gradient(episode).loss)
        ]
        named = ", ".join(map(str, blamed)) or f"{episodes.index[0]} to {episodes.index[-1]} together"
        return (
            f"The meta-loss ({loss:g}) or its gradient is not finite at iteration {self.iteration}, because of "
            f"meta-training episode {named}; try a smaller --inner-lr or --meta-lr"
        )

    def model_state(self) -> dict[str, Any]:
        """Everything that predictions depend on, with the parameters that are evaluated."""
        with self._evaluated():
            return self._learned_state()

    def _learned_state(self) -> dict[str, Any]:
        return {
            "strategy": {k: v.detach().cpu().clone() for k, v in self.strategy.state_dict().items()},
            "rates": [p.detach().cpu().clone() for p in self.rates.parameters()] if self.rates else [],
        }

    def load_model_state(self, state: dict[str, Any]) -> None:
        """Inverse of `model_state`; an average starts again from it."""
        self.strategy.load_state_dict(state["strategy"])
        with torch.no_grad():
            for rate, value in zip(self.inner_rates(), state["rates"], strict=True):
                if rate.shape != value.shape:
                    raise ValueError(f"an inner rate of {list(value.shape)}, where {list(rate.shape)} belongs")
                rate.copy_(value)
        if self._average is not None:
            self._average.reset()

    def inner_rates(self) -> list[nn.Parameter]:
        """The learnable rates; empty where the rate is a fixed number."""
        return list(self.rates.parameters()) if self.rates else []

    def state(self) -> dict[str, Any]:
        """Everything that the next steps depend on, loadable with `weights_only=True`."""
        average = {} if self._average is None else {"average": [value.cpu() for value in self._average.values]}
        learned, moments = self._learned_state(), self.optimiser.state_dict()
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

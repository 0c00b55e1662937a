"""Training what a method adapts, from the best head, for a number of steps that the number of photos sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metakm.learning.randomness import own_randomness
from metakm.models.pretrained import Preprocessing
from metakm.modulation.attachment import attachment
from metakm.modulation.norms import is_norm, train_mode
from metakm.modulation.partition import partition_tensors
from metakm.photos.augmentation import random_views
from metakm.photos.head import Solver, install_head, solve_centroid, solve_head, solve_ridge, solve_start
from metakm.photos.methods import CLOSED_FORM, METHODS, MethodName
from metakm.photos.store import BATCH, PhotoStore, normalise

HEAD_RATE = 1e-3
WARM_UP = 0.2  # of the steps
_SOLVERS: dict[MethodName, Solver] = {"head": solve_head, "centroid": solve_centroid, "ridge": solve_ridge}
EVALUATIONS = 2  # of the photos that are not trained on, over the steps


class Budget(NamedTuple):
    """How long a fit trains."""

    steps: int
    batch: int

    def evaluation_steps(self) -> list[int]:
        """Steps after which the photos that are held out are classified, the start included."""
        return [round(self.steps * i / EVALUATIONS) for i in range(EVALUATIONS + 1)] if self.steps else [0]


def budget(photos: int) -> Budget:
    """Five passes over up to 40 photos, fewer over more: 4 from 2,000 on; at least 6 steps."""
    passes = 5 - min(1.0, max(0.0, math.log(max(photos, 1) / 40) / math.log(50)))
    batch = min(BATCH, max(4, photos))
    return Budget(max(6, round(passes * photos / batch)), batch)


class TrainingPlan(NamedTuple):
    """How a fit trains.

    Attributes:
        rate: AdamW's highest learning rate of all but the norms and the head.
        norm_rate: that of the norms.
        head_rate: that of the head.
        budget: for how long.
        solve: the classifier that it starts from.
    """

    rate: float
    norm_rate: float
    head_rate: float
    budget: Budget
    solve: Solver = solve_start


def plan_for(method: MethodName, photos: int) -> TrainingPlan:
    """The plan of a method that needs no tuning."""
    rates = METHODS[method]
    solve = _SOLVERS.get(method, solve_start)
    steps = Budget(0, BATCH) if method in CLOSED_FORM else budget(photos)
    return TrainingPlan(rates.rate, rates.norm_rate, HEAD_RATE, steps, solve)


@dataclass
class TrainingState:
    """How far a fit is: all that resuming needs beside the task's tensors.

    Attributes:
        step: done.
        evaluations: (step, logits of the photos that are not trained on `[n, N]`).
        losses: (step, its loss).
    """

    step: int = 0
    evaluations: list[tuple[int, Tensor]] = field(default_factory=list)
    losses: list[tuple[int, float]] = field(default_factory=list)


class Trainer:
    """One network in training, on some photos of a store.

    Args:
        network: with a method attached, and a classifier of as many outputs as there are classes. What takes
            gradients is trained.
        train: numbers of the photos to train on.
        held_out: of those to classify now and then; may be empty.
        features: see `frozen_features`.
        last_step: where to stop, at the schedule's end or before it.
    """

    def __init__(
        self,
        network: nn.Module,
        classifier: str,
        plan: TrainingPlan,
        store: PhotoStore,
        preprocessing: Preprocessing,
        train: Sequence[int],
        held_out: Sequence[int],
        features: Tensor,
        *,
        seed: int,
        last_step: int,
        augment: bool = True,
    ) -> None:
        self.network, self.classifier, self.plan, self.store = network, classifier, plan, store
        self.preprocessing, self.train, self.held_out = preprocessing, list(train), list(held_out)
        self.features, self.seed, self.augment = features, seed, augment
        self.device = next(network.parameters()).device
        self.budget = plan.budget
        self.last_step = last_step
        self.state = TrainingState()
        self.labels = store.labels[self.train]
        counts = torch.bincount(self.labels, minlength=len(store.classes)).clamp_min(1)
        rare = counts[self.labels].double().rsqrt()  # a class of 300 photos weighs 10 times one of 3, not 100 times
        self.weights = rare / rare.mean()
        self.optimizer = self._optimizer()

    def start(self) -> None:
        """Install the plan's head for the frozen network."""
        views = len(self.features)
        labels, weights = (each.repeat(views).to(self.device) for each in (self.labels, self.weights))
        weight, bias = self.plan.solve(
            self.features[:, self.train].flatten(0, 1), labels, weights, len(self.store.classes)
        )
        install_head(self.network, self.classifier, weight, bias)
        self._evaluate()  # by the network, which may do more after its classifier, as SqueezeNet does

    def run(self, after_step: Callable[[float], None] = lambda _: None) -> None:
        """Train to the last step; `after_step` is called with each loss, and may end the run by an exception."""
        evaluated = self.budget.evaluation_steps()
        while self.state.step < self.last_step:
            loss = self._step(self.state.step)
            self.state.step += 1
            self.state.losses.append((self.state.step, loss))
            if self.state.step in evaluated:
                self._evaluate()
            after_step(loss)
        self.network.eval()

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on as if nothing had happened."""
        return {
            "tensors": {name: tensor.detach().clone() for name, tensor in self._task().items()},
            "optimizer": self.optimizer.state_dict(),
            "state": [self.state.step, self.state.evaluations, self.state.losses],
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        if state["tensors"] is not None:  # of a part that is done, the answers may be all that is kept
            for name, tensor in self._task().items():
                tensor.copy_(state["tensors"][name])
        if state["optimizer"] is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        self.state = TrainingState(*state["state"])

    def _task(self) -> dict[str, Tensor]:
        found = attachment(self.network)
        return partition_tensors(self.network, found.implicit, found.classifier, found.statistics).task

    def _optimizer(self) -> torch.optim.Optimizer:
        head = {id(p) for p in self.network.get_submodule(self.classifier).parameters()}
        trained = [p for p in self.network.parameters() if p.requires_grad]
        norms = {id(p) for m in self.network.modules() if is_norm(m) for p in m.parameters(recurse=False)}
        groups = [
            {"params": [p for p in trained if id(p) not in head | norms], "lr": self.plan.rate},
            {"params": [p for p in trained if id(p) in norms], "lr": self.plan.norm_rate},
            {"params": [p for p in trained if id(p) in head], "lr": self.plan.head_rate},
        ]
        return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0)

    def _step(self, step: int) -> float:
        train_mode(self.network)
        numbers = self._drawn(step)
        batch = [self.train[i] for i in numbers]
        pixels = self.store.pixels(batch)
        if self.augment:
            pixels = random_views(pixels, self._seed(step))
        labels = self.store.labels[batch].to(self.device)
        scale = _schedule(step, self.budget.steps)
        self.optimizer.zero_grad()
        with own_randomness(self.seed, step, self.device):  # of dropout and stochastic depth
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                logits = self.network(normalise(pixels.to(self.device), self.preprocessing))
            errors = F.cross_entropy(logits.float(), labels, reduction="none")
            loss = (errors * self.weights[numbers].to(errors)).mean()
            loss.backward()  # type: ignore[no-untyped-call]
        rates = [group["lr"] for group in self.optimizer.param_groups]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * scale
        self.optimizer.step()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        return loss.item()

    def _drawn(self, step: int) -> list[int]:
        """Places in `train` of a step's batch: each photo once a pass, in an order of the pass's own."""
        count, size = len(self.train), self.budget.batch
        places = range(step * size, (step + 1) * size)
        orders = {number: self._order(number) for number in {place // count for place in places}}
        return [orders[place // count][place % count] for place in places]

    def _order(self, number: int) -> list[int]:
        """The order of a pass over the photos."""
        generator = torch.Generator().manual_seed(self._seed(number + 10**6))
        order: list[int] = torch.randperm(len(self.train), generator=generator).tolist()
        return order

    def _seed(self, number: int) -> int:
        return (self.seed * 1_000_003 + number) % 2**63

    @torch.no_grad()
    def _evaluate(self) -> None:
        if self.held_out:
            self.network.eval()
            batches = self.store.batches(self.held_out)
            logits = [self.network(normalise(p.to(self.device), self.preprocessing)).float().cpu() for p in batches]
            self.state.evaluations.append((self.state.step, torch.cat(logits)))


def _schedule(step: int, steps: int) -> float:
    """Share of the rate: a linear rise, then a cosine's fall."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm + 1) / (steps - warm + 1)))

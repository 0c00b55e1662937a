"""Supervised training: one optimiser step after another, and the state to resume it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from metakm.experiments.batches import IMAGENET, Batch, Batches, Normalisation
from metakm.experiments.classification import Classification, first_per_class
from metakm.experiments.config import MethodConfig
from metakm.experiments.training_memory import TrainingMemory
from metakm.learning.divergence import DivergedError, is_finite
from metakm.learning.outer_loop import StepResult
from metakm.learning.randomness import own_randomness
from metakm.modulation.norms import train_mode
from metakm.ops.conv2d import fastest_memory_format

EVALUATION_BATCH = 250


class GradientMap(Protocol):
    """Replaces the gradients of the trained parameters before each step."""

    def __call__(self, parameters: list[nn.Parameter], iteration: int) -> None:
        """Change every parameter's `grad` in place, depending only on the gradients and the iteration."""


class Training:
    """Cross-entropy, SGD or Adam, on the batches of the training part.

    Iteration i learns from batch i of `Batches`, which is a function of the seed and i, as is what the model draws
    (dropout), so the state is the model, the optimiser's moments and the iteration.

    Args:
        model: images `[n, 3, H, W]` to logits `[n, classes]`; parameters that require a gradient are trained.
        map_gradient: see `GradientMap`; None leaves the gradients as they are.
        normalisation: of the images.
        hold_statistics: leave the norms' running statistics as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Classification,
        config: MethodConfig,
        device: torch.device,
        map_gradient: GradientMap | None = None,
        normalisation: Normalisation = IMAGENET,
        hold_statistics: bool = False,
    ) -> None:
        flags = config.flags
        self.memory_format = fastest_memory_format(model)
        self.model = model.to(device, memory_format=self.memory_format)  # type: ignore[call-overload]
        self.config, self.device, self.map_gradient = config, device, map_gradient
        self.hold_statistics = hold_statistics
        per_class = math.ceil(flags.train_images / data.train.n_classes)
        train = [first_per_class(data.train, per_class) if per_class else data.train]
        train += [] if flags.holds_out else [data.val]
        self.train = Batches(train, flags.batch, flags.seed, flags.augmentation, flags.image_size, normalisation)
        self.parts = {
            split: Batches([part], EVALUATION_BATCH, flags.seed, "none", flags.image_size, normalisation)
            for split, part in (("val", data.val), ("test", data.test))
        }
        self.iterations = flags.epochs * self.train.per_epoch
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = self._optimiser()
        self.iteration = 0
        self.memory = TrainingMemory(device)

    def _optimiser(self) -> torch.optim.Optimizer:
        config = self.config
        if config.flags.optimiser == "adam":
            return torch.optim.Adam(self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
        return torch.optim.SGD(
            self.parameters, lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
        )

    def step(self) -> StepResult:
        """Train on the next batch.

        Raises:
            DivergedError: the loss or its gradient is not finite; the parameters are unchanged.
        """
        images, labels = self._to_device(self.train.training(self.iteration))
        train_mode(self.model, self.hold_statistics)
        self.memory.before_step(lambda: self._backward(copy.deepcopy(self.model), images, labels))
        self.optimiser.zero_grad()
        loss, logits = self._backward(self.model, images, labels)
        if not is_finite(loss.item(), self.parameters):
            raise DivergedError(
                f"The loss ({loss.item():g}) or its gradient is not finite at iteration {self.iteration}; try a "
                "smaller --learning-rate"
            )
        if self.map_gradient is not None:
            self.map_gradient(self.parameters, self.iteration)
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate * self._decay()
        self.optimiser.step()
        self.memory.after_step()
        self.iteration += 1
        return StepResult(loss.item(), float((logits.argmax(1) == labels).float().mean()))

    def _backward(self, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, whose gradients are then in the parameters, and the logits."""
        with own_randomness(self.config.flags.seed, self.iteration, self.device):  # of dropout and stochastic depth
            logits = model(images)
            loss = F.cross_entropy(logits, labels)
            loss.backward()  # type: ignore[no-untyped-call]
        return loss, logits

    def first_images(self) -> Tensor:
        """Two images of the test part, on the device."""
        images, _ = self._to_device(self.parts["test"].sequential(0))
        return images[:2]

    def _to_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images and labels on the device."""
        return batch.images.to(self.device, memory_format=self.memory_format), batch.labels.to(self.device)

    def _decay(self) -> float:
        done = self.iteration / self.iterations
        if not self.config.annealed:
            return 1.0
        if self.config.flags.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        return 0.01 if done >= 0.75 else 0.1 if done >= 0.5 else 1.0

    @torch.no_grad()
    def correct(self, split: str, progress: Callable[[int], None] = lambda _: None) -> npt.NDArray[np.float64]:
        """1 for each image of a part that is classified correctly in evaluation mode, else 0; `[n]`.

        Args:
            progress: called with the number of images just done; may raise to stop.
        """
        part, correct = self.parts[split], []
        self.model.eval()
        with parametrize.cached():  # the modulated kernels are the same for every batch
            for start in range(0, len(part.labels), EVALUATION_BATCH):
                images, labels = self._to_device(part.sequential(start))
                correct.append((self.model(images).argmax(1) == labels).double().cpu().numpy())
                progress(len(labels))
        return np.concatenate(correct)

    def state(self) -> dict[str, Any]:
        """Everything that further steps depend on, loadable with `weights_only=True`."""
        model = {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}
        moments, memory = self.optimiser.state_dict(), self.memory.mb
        return {"model": model, "optimiser": moments, "iteration": self.iteration, "memory": memory}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.iteration = int(state["iteration"])
        self.memory.resume(state.get("memory"), self.iteration)  # an older checkpoint has none

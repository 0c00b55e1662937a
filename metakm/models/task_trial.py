"""Whether a backbone keeps tasks apart: it is called, in float64, for two tasks together and for each alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from metakm.errors import UserError, describe_error
from metakm.models.registry import ImageShape

_IMAGES, _TASKS = 4, 2  # batch statistics of fewer images amplify rounding
_TOLERANCE = 1e-6


class Tried(NamedTuple):
    """What a trial has found.

    features: how many the backbone returns for an image.
    mixes: whether tasks together differ from each alone, in evaluation or in training.
    """

    features: int
    mixes: bool


class _Trial(NamedTuple):
    """One backbone in float64, with images and with parameters of several tasks."""

    backbone: nn.Module
    images: Tensor
    parameters: dict[str, Tensor]

    def together(self) -> Tensor:
        return self._call(self.parameters, self.images)

    def alone(self) -> Tensor:
        tasks = [{name: p[t] for name, p in self.parameters.items()} for t in range(_TASKS)]
        return torch.cat([self._call(own, self.images[t : t + 1]) for t, own in enumerate(tasks)])

    def _call(self, parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
        with _RandomNumbersAreConstant():  # type: ignore[no-untyped-call]
            features: Any = functional_call(self.backbone, dict(parameters), (images,), tie_weights=False)
        got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        if not isinstance(features, Tensor) or features.dim() != 3 or features.shape[:2] != images.shape[:2]:
            wanted = f"[{', '.join(map(str, images.shape[:2]))}, F]"
            raise UserError(
                f"Expected {_name(self.backbone)} to return features {wanted}, got {got}; return one tensor"
            )
        return features


class _RandomNumbersAreConstant(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within the block dropout and the like do the same in every call, whatever the shape: they drop nothing."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        drawn, kind = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        if kind in ("bernoulli", "bernoulli_"):
            probability = args[1] if len(args) > 1 else args[0] if kind == "bernoulli" else 0.5
            return drawn.copy_(torch.as_tensor(probability))
        return drawn.fill_(0.5) if kind.startswith(("rand", "uniform", "normal")) else drawn


@torch.no_grad()
def try_tasks(backbone: nn.Module, image_shape: ImageShape) -> Tried:
    """Call a copy of a backbone that takes images `[T, n, C, H, W]`, each task with parameters of its own.

    Raises:
        UserError: it fails, or does not return finite features `[T, n, F]`, equally many in training and in evaluation.
    """
    copied = copy.deepcopy(backbone).to("cpu", torch.float64)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_TASKS, _IMAGES, *image_shape, dtype=torch.float64, generator=generator)
    parameters = {}
    for name, parameter in copied.named_parameters():  # each once; with a shift, as layers may start at zero
        noise = torch.randn(_TASKS, *parameter.shape, dtype=torch.float64, generator=generator)
        parameters[name] = parameter * (1 + 0.1 * noise) + 0.01 * noise
    with torch.random.fork_rng(devices=[]):
        found = [_tried(_Trial(copied.train(mode), images, parameters), image_shape) for mode in (False, True)]
    features = [each.features for each in found]
    if features[0] != features[1]:
        raise UserError(
            f"Expected as many features in training as in evaluation, got {features[1]} and {features[0]} from "
            f"{_name(backbone)}; return the same"
        )
    return Tried(features[0], any(each.mixes for each in found))


def _name(backbone: nn.Module) -> str:
    """The class of the backbone, or of the network in it."""
    return type(getattr(backbone, "network", backbone)).__name__


def _tried(trial: _Trial, image_shape: ImageShape) -> Tried:
    try:
        alone = trial.alone()
    except UserError:
        raise
    except Exception as error:  # the network's own code
        raise UserError(
            f"Expected a network for images of {image_shape}, got {describe_error(error)}; choose another"
        ) from error
    if not alone.isfinite().all():
        mode = "training" if trial.backbone.training else "evaluation"
        raise UserError(f"Expected finite features, got NaN or infinity in {mode}; check the weights of the network")
    try:
        together = trial.together()
    except Exception:  # the network's own code meets other shapes than it expects
        return Tried(alone.shape[-1], True)
    same = together.shape == alone.shape and torch.allclose(together, alone, _TOLERANCE, _TOLERANCE)
    return Tried(alone.shape[-1], not same)

"""Any plain network as a backbone: its layers become layers that carry tasks.

Layers that are known become those of `metakm.models.row_layers`. A layer with parameters of an unknown class, and a
module that uses parameters of its own beside its layers, are called for one task after the other. What the network's
own code does between its layers is tried: if two tasks together do not give what each gives alone, or fail, the whole
network is called for one task after the other.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from metakm.errors import UserError, unknown_name
from metakm.models import layers
from metakm.models.modes import BatchNormMode
from metakm.models.row_layers import ADOPTED, rows_of
from metakm.models.task_by_task import run_task_by_task
from metakm.registry import describe_error

ImageShape = tuple[int, int, int]
_IMAGES, _TASKS = 4, 2  # of the trial; batch statistics of fewer images amplify rounding
_TOLERANCE = 1e-6  # of the trial, in float64

_log = logging.getLogger(__name__)


class TaskBackbone(nn.Module):
    """A plain network, converted; `[T, n, C, H, W]` to features `[T, n, F]`, `[n, C, H, W]` to `[n, F]`.

    Attributes:
        network: the network itself, whose layers carry tasks.
        out_features: F.
    """

    carries_tasks = True
    out_features: int

    def __init__(self, network: nn.Module, in_channels: int) -> None:
        super().__init__()
        self.network, self.in_channels = network, in_channels

    def forward(self, images: Tensor) -> Tensor:
        """See the class.

        Raises:
            UserError: images of other channels, or a network that does not return features `[n, F]`.
        """
        if images.shape[-3] != self.in_channels:
            raise UserError(f"Expected images of {self.in_channels} channels, got {images.shape[-3]}; convert them")
        tasks = images.shape[0] if images.dim() == 5 else 1
        rows = images.transpose(0, 1).flatten(0, 1) if images.dim() == 5 else images  # [n*T, C, H, W]
        with rows_of(tasks):
            features = _checked(self.network(rows), len(rows), type(self.network).__name__)
        by_image = features.reshape(-1, tasks, features.shape[1])  # [n, T, F]
        return by_image.transpose(0, 1) if images.dim() == 5 else features


def carries_tasks(backbone: nn.Module) -> bool:
    """Whether a network takes images `[T, n, C, H, W]` itself: it says so, or is made of layers that do."""
    said = getattr(backbone, "carries_tasks", None)
    own = (layers.Conv2d, layers.BatchNorm2d, layers.Linear)
    return any(isinstance(module, own) for module in backbone.modules()) if said is None else bool(said)


def carry_tasks(network: nn.Module, image_shape: ImageShape, bn_mode: BatchNormMode = "transductive") -> nn.Module:
    """Make a backbone of a plain network, which takes images `[n, C, H, W]` to features `[n, F]`.

    The layers of `network` are changed in place; its parameters stay the same objects. A network that takes tasks
    itself, and says so by an attribute `carries_tasks = True`, is returned as it is.

    What runs task by task, and so is slow, is named once in the log.

    Args:
        image_shape: (C, H, W) of the images that it is for.
        bn_mode: of its batch-norm layers, see `metakm.models.BatchNorm2d`.

    Raises:
        UserError: a layer whose statistics cannot follow `bn_mode`, or that has no fixed parameters; a network that
            does not take such images to finite features `[n, F]`, equally many in training and in evaluation.
    """
    if carries_tasks(network):
        return network
    if bn_mode not in get_args(BatchNormMode):
        raise unknown_name("bn_mode", bn_mode, get_args(BatchNormMode))
    _require_convertible(network)
    slow = [name for name, module in _innermost_first(network) if _convert(module, bn_mode) == "task by task"]
    backbone = TaskBackbone(network, image_shape[0])
    if _trial(backbone, image_shape):
        slow = [""]
        run_task_by_task(network, always=True)
        _trial(backbone, image_shape)
    if slow:
        _say_slow(network, slow)
    return backbone


def _innermost_first(network: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(network.named_modules())[::-1]


def _require_convertible(network: nn.Module) -> None:
    """Refuse, before anything is changed, layers that neither carry tasks nor can be called task by task."""
    for name, module in network.named_modules():
        kind = type(module)
        why = ""
        if isinstance(module, torch.jit.ScriptModule):
            why = "whose code is compiled; give the network as Python code"
        elif isinstance(module, nn.modules.lazy.LazyModuleMixin):
            why = "which has no parameters yet; call the network once before"
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and _library_name(module) not in ADOPTED:
            why = "whose statistics cannot follow bn_mode; use nn.BatchNorm2d or a norm without batch statistics"
        elif any(_updates_itself(part) for part in _parametrizations(module)):
            why = "which changes at every call; remove its spectral norm"
        if why:
            raise UserError(
                f"Expected layers that can carry tasks, got {name or 'a network that is'}: {kind.__module__}."
                f"{kind.__qualname__}, {why}"
            )


def _parametrizations(module: nn.Module) -> list[object]:
    found = [part for each in getattr(module, "parametrizations", {}).values() for part in each]
    return [*found, *module._forward_pre_hooks.values()]


def _updates_itself(part: object) -> bool:
    return "spectralnorm" in type(part).__name__.lower()


def _library_name(module: nn.Module) -> str:
    kind = type(module)
    return f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


def _convert(module: nn.Module, bn_mode: BatchNormMode) -> str:
    """Make a module carry tasks, without its children; say how."""
    if getattr(module, "inplace", None) is True:
        module.inplace = False  # type: ignore[assignment]  # what the layers before save for their derivatives stays as it is
    adopt = ADOPTED.get(_library_name(module))
    if adopt is not None and not parametrize.is_parametrized(module) and not module._forward_pre_hooks:
        adopt(module, bn_mode)
        return "carries tasks"
    own = any(parameter is not None for parameter in module._parameters.values())
    if own or module._forward_pre_hooks or parametrize.is_parametrized(module):
        run_task_by_task(module)
        return "task by task"
    return "has no parameters"


def _say_slow(network: nn.Module, slow: list[str]) -> None:
    if slow == [""]:
        _log.warning("%s runs task by task, which is slow: its own code mixes the images", type(network).__name__)
        return
    listed = ", ".join(f"{name} ({type(network.get_submodule(name)).__name__})" for name in sorted(slow)[:3])
    more = f" and {len(slow) - 3} more" if len(slow) > 3 else ""
    _log.warning("these layers run task by task, which is slow: %s%s", listed, more)


class _Trial(NamedTuple):
    """One backbone in float64, with images and with parameters of several tasks."""

    backbone: TaskBackbone
    images: Tensor
    parameters: dict[str, Tensor]

    def together(self) -> Tensor:
        return self._call(self.parameters, self.images)

    def alone(self) -> Tensor:
        tasks = [{name: p[t] for name, p in self.parameters.items()} for t in range(_TASKS)]
        return torch.cat([self._call(own, self.images[t : t + 1]) for t, own in enumerate(tasks)])

    def _call(self, parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
        features: Tensor = functional_call(self.backbone, dict(parameters), (images,), tie_weights=False)
        return features


@torch.no_grad()
def _trial(backbone: TaskBackbone, image_shape: ImageShape) -> bool:
    """Set the number of features; whether tasks together differ from each alone, in evaluation or in training."""
    copied = copy.deepcopy(backbone).to(dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_TASKS, _IMAGES, *image_shape, dtype=torch.float64, generator=generator)
    parameters = {}
    for name, parameter in copied.named_parameters():  # each once; with a shift, as layers may start at zero
        noise = torch.randn(_TASKS, *parameter.shape, dtype=torch.float64, generator=generator)
        parameters[name] = parameter * (1 + 0.1 * noise) + 0.01 * noise
    trial = _Trial(copied, images, parameters)
    with torch.random.fork_rng(devices=[]):
        found = [_tried(trial.backbone.train(mode), trial, image_shape) for mode in (False, True)]
    features = [size for size, _ in found]
    if features[0] != features[1]:
        raise UserError(
            f"Expected as many features in training as in evaluation, got {features[1]} and {features[0]} from "
            f"{type(backbone.network).__name__}; return the same"
        )
    backbone.out_features = features[0]
    return any(mixes for _, mixes in found)


def _tried(backbone: nn.Module, trial: _Trial, image_shape: ImageShape) -> tuple[int, bool]:
    """The number of features, and whether tasks mix; with dropout, which no two calls share, they are not said to."""
    try:
        alone = trial.alone()
    except UserError:
        raise
    except Exception as error:  # the network's own code
        raise UserError(
            f"Expected a network for images of {image_shape}, got {describe_error(error)}; choose another"
        ) from error
    if not alone.isfinite().all():
        raise UserError(
            f"Expected finite features, got NaN or infinity in {'training' if backbone.training else 'evaluation'}; "
            "check the weights of the network"
        )
    try:
        together = trial.together()
    except Exception:  # the network's own code meets other shapes than it expects
        return alone.shape[-1], True
    if together.shape == alone.shape and torch.allclose(together, alone, _TOLERANCE, _TOLERANCE):
        return alone.shape[-1], False
    return alone.shape[-1], torch.equal(alone, trial.alone())


def _checked(features: Any, rows: int, network: str) -> Tensor:
    got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
    if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != rows:
        raise UserError(
            f"Expected {network} to return features [{rows}, F], got {got}; return one tensor, pooled and flattened"
        )
    return features

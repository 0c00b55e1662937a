"""Any plain network as a backbone: its layers become layers that carry tasks.

Layers that are known become those of `metakm.models.row_layers`. A layer with parameters of an unknown class, and a
module that uses parameters of its own beside its layers, are called for one task after the other. What the network's
own code does between its layers is tried: if two tasks together do not give what each gives alone, or fail, the whole
network is called for one task after the other.
"""

from __future__ import annotations

import copy
import logging
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from metakm.errors import UserError, unknown_name
from metakm.models import layers
from metakm.models.modes import BatchNormMode
from metakm.models.registry import ImageShape
from metakm.models.row_layers import ADOPTED
from metakm.models.rows import rows_of
from metakm.models.task_by_task import run_task_by_task
from metakm.models.task_trial import try_tasks

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
        with rows_of(tasks, len(rows)):
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

    The backbone shares the parameters and buffers of `network`, whose own layers stay as they are, but kernels are
    stored channels-last from now on. A network that takes tasks itself, and says so by an attribute
    `carries_tasks = True`, is returned as it is.

    What runs task by task, and so is slow, is named once in the log.

    Args:
        image_shape: (C, H, W) of the images that it is for.
        bn_mode: of its batch-norm layers, see `metakm.models.BatchNorm2d`.

    Raises:
        UserError: a compiled network; a layer whose statistics cannot follow `bn_mode`, or that has no fixed
            parameters; a network that does not take such images to finite features `[n, F]`, equally many in training
            and in evaluation; one that takes tasks itself, but mixes them.
    """
    _require_arguments(network, image_shape)
    require_uncompiled(network)
    if carries_tasks(network):
        if not type(network).__module__.startswith("metakm."):  # whose own are tested
            _require_tasks_apart(network, image_shape)
        return network
    if bn_mode not in get_args(BatchNormMode):
        raise unknown_name("bn_mode", bn_mode, get_args(BatchNormMode))
    _require_convertible(network)
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    network = copy.deepcopy(network, shared)
    like = next(network.parameters(), torch.zeros(()))
    slow = [name for name, module in _innermost_first(network) if _convert(module, bn_mode, like)]
    backbone = TaskBackbone(network, image_shape[0])
    backbone.out_features, mixes = try_tasks(backbone, image_shape)
    if mixes:
        run_task_by_task(network, always=True)
        try_tasks(backbone, image_shape)
    if mixes or slow:
        _say_slow(network, slow, mixes)
    return backbone


def require_uncompiled(network: nn.Module) -> None:
    """Refuse a network of which a part is compiled by `torch.compile`, which drops second derivatives in silence.

    Raises:
        UserError: names the part.
    """
    for name, module in network.named_modules():
        if isinstance(getattr(module, "_orig_mod", None), nn.Module) or getattr(module, "_compiled_call_impl", None):
            raise UserError(
                f"Expected a network that is not compiled, got {name or 'one'} by torch.compile, which has no second "
                "derivatives; give the network as it was before"
            )


def _require_arguments(network: object, image_shape: object) -> None:
    if not isinstance(network, nn.Module):
        kind = f"the class {network.__name__}" if isinstance(network, type) else type(network).__name__
        raise UserError(f"Expected a network, got {kind}; pass an nn.Module that is built, such as Net()")
    if not isinstance(image_shape, tuple | list) or [type(size) for size in image_shape] != [int] * 3:
        raise UserError(f"Expected image_shape as (C, H, W), three whole numbers, got {image_shape!r}; pass these")


def _require_tasks_apart(backbone: nn.Module, image_shape: ImageShape) -> None:
    """Refuse a backbone that takes tasks itself but does not keep them apart."""
    name, said = type(backbone).__name__, getattr(backbone, "out_features", None)
    features, mixes = try_tasks(backbone, image_shape)
    if mixes:
        raise UserError(
            f"Expected {name}, which has carries_tasks, to keep tasks apart, got features for a task that change with "
            "the other tasks of the batch; build it from the layers of metakm.models, or leave out carries_tasks"
        )
    if said != features:
        raise UserError(f"Expected out_features of {name} to be {features}, as it returns, got {said!r}; set that")


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
        elif any(_computes_weight(hook) for hook in module._forward_pre_hooks.values()):
            why = (
                "whose weight is computed before every call; remove its weight norm or pruning, or use "
                "nn.utils.parametrizations.weight_norm"
            )
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


def _computes_weight(hook: object) -> bool:
    return type(hook).__name__ == "WeightNorm" or isinstance(hook, prune.BasePruningMethod)


def _library_name(module: nn.Module) -> str:
    kind = type(module)
    return f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


def _convert(module: nn.Module, bn_mode: BatchNormMode, like: Tensor) -> bool:
    """Make a module carry tasks, without its children. Returns whether it now runs task by task.

    New buffers have the device and precision of `like`.
    """
    if getattr(module, "inplace", None) is True:
        module.inplace = False  # type: ignore[assignment]  # what the layers before save for their derivatives stays as it is
    adopt = ADOPTED.get(_library_name(module))
    if adopt is not None and not parametrize.is_parametrized(module) and not module._forward_pre_hooks:
        adopt(module, bn_mode, like)
        return False
    own = any(parameter is not None for parameter in module._parameters.values())
    if own or module._forward_pre_hooks or parametrize.is_parametrized(module):
        run_task_by_task(module)
        return True
    return False


def _say_slow(network: nn.Module, slow: list[str], mixes: bool) -> None:
    if mixes or "" in slow:
        why = "its own code mixes the images" if mixes else "it has parameters or hooks of its own"
        _log.warning("%s runs task by task, which is slow: %s", type(network).__name__, why)
        return
    listed = ", ".join(f"{name} ({type(network.get_submodule(name)).__name__})" for name in sorted(slow)[:3])
    more = f" and {len(slow) - 3} more" if len(slow) > 3 else ""
    _log.warning("these layers run task by task, which is slow: %s%s", listed, more)


def _checked(features: Any, rows: int, network: str) -> Tensor:
    got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
    if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != rows:
        raise UserError(
            f"Expected {network} to return features [{rows}, F], got {got}; return one tensor, pooled and flattened"
        )
    return features

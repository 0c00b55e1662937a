"""Layers that would let the tasks of one batch influence each other."""

from __future__ import annotations

from torch import nn

from metakm.errors import UserError
from metakm.models.layers import BatchNorm2d


def require_independent_tasks(network: nn.Module) -> None:
    """Refuse layers that take statistics over the batch, in which images of several tasks lie side by side.

    These are torch's batch norm of every kind, and layers that keep running statistics as it does, in training mode,
    or without running statistics in either mode. In evaluation mode with running statistics each image stands for
    itself, and instance norm normalises each image by itself.

    Raises:
        UserError: it names the layer and its class.
    """
    for name, module in network.named_modules():
        if _mixes_images(module):
            kind = type(module)
            raise UserError(
                f"Expected layers that keep the tasks of a batch apart, got {name or 'a network that is'}: "
                f"{kind.__module__}.{kind.__qualname__} in {'training' if module.training else 'evaluation'} mode, "
                "whose statistics mix them; use metakm.models.BatchNorm2d or a norm without batch statistics, such as "
                "nn.GroupNorm, or keep it in evaluation mode"
            )


def _mixes_images(module: nn.Module) -> bool:
    if isinstance(module, BatchNorm2d | nn.modules.instancenorm._InstanceNorm):
        return False
    tracks = hasattr(module, "running_var") and hasattr(module, "momentum")  # batch norm outside of torch, too
    if not (isinstance(module, nn.modules.batchnorm._BatchNorm) or tracks):
        return False
    return module.training or getattr(module, "running_var", None) is None

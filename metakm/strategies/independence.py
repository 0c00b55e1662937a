"""Detect layers that let the tasks of a batch influence each other."""

from __future__ import annotations

from torch import nn

from metakm.errors import UserError
from metakm.models.layers import BatchNorm2d


def require_independent_tasks(network: nn.Module) -> None:
    """Refuse layers with statistics over the batch, which holds images of several tasks.

    These are all kinds of torch's batch norm, and layers that keep running statistics in the same way, in training
    mode, or in either mode without running statistics. In evaluation mode with running statistics, and in instance
    norm, each image is normalised independently.

    Raises:
        UserError: names the layer and its class.
    """
    for name, module in network.named_modules():
        if _mixes_images(module):
            kind = type(module)
            raise UserError(
                f"Expected layers that keep the tasks of a batch apart, got {name or 'a network that is'}: "
                f"{kind.__module__}.{kind.__qualname__} in {'training' if module.training else 'evaluation'} mode, "
                "whose statistics mix them; convert it with metakm.carry_tasks, or use metakm.models.BatchNorm2d "
                "or a norm without batch statistics, such as nn.GroupNorm, or keep it in evaluation mode"
            )


def _mixes_images(module: nn.Module) -> bool:
    if isinstance(module, BatchNorm2d | nn.modules.instancenorm._InstanceNorm):
        return False
    tracks = hasattr(module, "running_var") and hasattr(module, "momentum")  # batch norm outside of torch, too
    if not (isinstance(module, nn.modules.batchnorm._BatchNorm) or tracks):
        return False
    return module.training or getattr(module, "running_var", None) is None

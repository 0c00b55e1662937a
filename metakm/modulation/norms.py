"""Implicit modulation (Sec. III-B): which layers normalise, and group norm for small batches."""

from __future__ import annotations

from typing import Literal

from torch import nn

from metakm.errors import UserError, unknown_name
from metakm.models.layers import BatchNorm2d


def is_norm(module: nn.Module) -> bool:
    """Whether `module` normalises feature maps: batch, instance, group or layer norm."""
    return isinstance(module, BatchNorm2d | nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm)


def replace_norm(model: nn.Module, kind: Literal["group"] = "group", groups: int = 32) -> nn.Module:
    """Put group norm in the place of every `nn.BatchNorm2d` of `model`, as the paper does for batches of 8 (Sec. IV-B).

    The affine parameters stay the same objects; running statistics are dropped. Changes `model` and returns it.

    Args:
        groups: a layer gets the largest number of groups up to this that divides its channels and leaves at least
            two channels in each; a group of one channel would lose all that a 1x1 feature map says.

    Raises:
        UserError: another `kind`, fewer than 1 group, or a model without `nn.BatchNorm2d` (metakm's own backbones
            choose their statistics by `bn_mode` instead).
    """
    if kind != "group":
        raise unknown_name("norm", kind, ["group"])
    if groups < 1:
        raise UserError(f"Expected groups to be at least 1, got {groups}; group norm's usual choice is 32")
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d | nn.SyncBatchNorm):
                setattr(parent, name, _group_norm(child, groups))
                replaced += 1
    if not replaced:
        raise UserError(
            f"Expected a model with nn.BatchNorm2d layers, got {type(model).__name__} without; leave replace_norm out "
            "(metakm's own backbones take bn_mode instead)"
        )
    return model


def _group_norm(batch: nn.BatchNorm2d | nn.SyncBatchNorm, most: int) -> nn.GroupNorm:
    channels = batch.num_features
    fitting = [g for g in range(1, min(most, channels // 2) + 1) if channels % g == 0]
    group = nn.GroupNorm(max(fitting, default=1), channels, batch.eps, affine=False)
    group.affine, group.weight, group.bias = batch.affine, batch.weight, batch.bias
    return group.train(batch.training)

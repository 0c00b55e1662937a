"""Implicit modulation (Sec. III-B): which layers normalise, and group norm for small batches."""

from __future__ import annotations

from typing import Literal

from torch import nn

from metakm.errors import UserError, unknown_name
from metakm.models.layers import BatchNorm2d

_KNOWN = (BatchNorm2d, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
_AFFINE = frozenset({"weight", "bias", "gamma", "beta", "scale"})


def is_norm(module: nn.Module) -> bool:
    """Whether `module` normalises feature maps: batch, instance, group, layer or RMS norm.

    Norms of other libraries that do not derive from torch's, such as timm's RmsNorm, are recognised by their class name
    and by having no parameters but a scale and a shift.
    """
    if isinstance(module, _KNOWN):
        return True
    if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):  # such as a convolution with normalised kernels
        return False
    own = {name for name, _ in module.named_parameters(recurse=False)}
    return "norm" in type(module).__name__.lower() and bool(own) and own <= _AFFINE


def replace_norm(model: nn.Module, kind: Literal["group"] = "group", groups: int = 32) -> nn.Module:
    """Replace every `nn.BatchNorm2d` of `model` with group norm, as the paper does for batches of 8 (Sec. IV-B).

    The affine parameters stay the same objects; running statistics are dropped. Changes `model` and returns it.

    Args:
        groups: a layer gets the largest number of groups up to this that divides its channels and leaves at least
            two channels in each; a group of one channel would erase a 1x1 feature map.

    Raises:
        UserError: another `kind`, fewer than 1 group, a model without `nn.BatchNorm2d` (metakm's own backbones choose
            their statistics by `bn_mode` instead), or with a subclass of it, which may do more than normalise (timm's
            BatchNormAct2d). `model` is then unchanged.
    """
    if kind != "group":
        raise unknown_name("norm", kind, ["group"])
    if groups < 1:
        raise UserError(f"Expected groups to be at least 1, got {groups}; group norm's usual choice is 32")
    found = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d | nn.SyncBatchNorm)}
    for name, module in found.items():
        if type(module) not in (nn.BatchNorm2d, nn.SyncBatchNorm):
            raise UserError(
                f"Expected nn.BatchNorm2d itself, got its subclass {type(module).__name__} at {name!r}, which may do "
                "more than normalise; replace it by hand"
            )
    group_norms = {id(module): _group_norm(module, groups) for module in found.values()}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # a module with two names is replaced under both
            if id(child) in group_norms:
                setattr(parent, name, group_norms[id(child)])
    if not group_norms:
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


def train_mode(model: nn.Module, hold_statistics: bool = True) -> None:
    """Training mode, for dropout; with `hold_statistics`, the norms' running statistics stay as they are."""
    model.train()
    if hold_statistics:
        for module in model.modules():
            if is_norm(module):
                module.eval()

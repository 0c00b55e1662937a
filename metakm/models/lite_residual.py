"""TinyTL's lite residual (Cai et al. 2020, "TinyTL: Reduce Memory, Not Parameters", Sec. 3.2).

A frozen convolution F gets a small trainable branch in parallel, at half the resolution::

    y = F(x) + up(norm(conv1x1(relu(norm(conv3x3_groups2(pool(x)))))))

TinyTL adds one to each block of its MobileNet-like network. In a ResNet, the branch is parallel to `conv2`, the block's
3x3 convolution of few channels. The scale of the last norm starts at 0, so the network starts unchanged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metakm.errors import UserError

GROUP_CHANNELS = 8  # of group norm, as in TinyTL


class LiteResidual(nn.Module):
    """A convolution with a lite residual branch, with the shapes of the convolution."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        groups = 2 if conv.in_channels % 2 == 0 else 1
        self.grouped = nn.Conv2d(
            conv.in_channels, conv.in_channels, 3, (conv.stride[0], conv.stride[1]), 1, groups=groups, bias=False
        )
        self.norm1 = _group_norm(conv.in_channels)
        self.pointwise = nn.Conv2d(conv.in_channels, conv.out_channels, 1, bias=False)
        self.norm2 = _group_norm(conv.out_channels)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, C, H, W]` to `[n, O, H', W']`."""
        y: Tensor = self.conv(x)
        small = F.avg_pool2d(x, 2, ceil_mode=True)
        small = self.norm2(self.pointwise(torch.relu(self.norm1(self.grouped(small)))))
        return y + F.interpolate(small, size=y.shape[2:], mode="bilinear", align_corners=False)


def insert_lite_residuals(model: nn.Module) -> nn.Module:
    """Replace every `conv2` of `model`'s blocks with a `LiteResidual`; changes `model` and returns it.

    Raises:
        UserError: a model without such layers.
    """
    blocks = [m for m in model.modules() if isinstance(getattr(m, "conv2", None), nn.Conv2d)]
    if not blocks:
        raise UserError("Expected a ResNet, whose blocks have a conv2, got a model without; choose another method")
    for block in blocks:
        conv = block.conv2
        assert isinstance(conv, nn.Conv2d)
        block.conv2 = LiteResidual(conv)
    return model


def _group_norm(channels: int) -> nn.GroupNorm:
    groups = channels // GROUP_CHANNELS if channels % GROUP_CHANNELS == 0 else 1
    return nn.GroupNorm(groups, channels)

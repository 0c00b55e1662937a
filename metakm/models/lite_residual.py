"""TinyTL's lite residual (Cai et al. 2020, "TinyTL: Reduce Memory, Not Parameters", Sec. 3.2).

A frozen part F of a network gets a small trainable branch in parallel, at half the resolution::

    y = F(x) + up(norm(conv1x1(relu(norm(conv_groups2(pool(x)))))))

In timm's networks of inverted residual blocks, such as MobileNetV2 and EfficientNet, F is each of these blocks, and the
branch's first kernel is 5x5, as in TinyTL. In a ResNet, F is `conv2`, the block's 3x3 convolution of few channels, and
the kernel is 3x3. The scale of the branch's last norm starts at 0, so the network starts unchanged. Its norms are group
norms, which need no running statistics.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metakm.errors import UserError

GROUP_CHANNELS = 8  # of group norm


class LiteResidual(nn.Module):
    """A part of a network with a lite residual branch.

    Args:
        main: takes `[n, C, H, W]` to `[n, O, H / stride, W / stride]`.
        in_channels: C.
        out_channels: O.
        stride: of the part, in height and width.
        kernel: side of the branch's first kernel.
    """

    def __init__(self, main: nn.Module, in_channels: int, out_channels: int, stride: tuple[int, int], kernel: int):
        super().__init__()
        self.main = main
        groups = 2 if in_channels % 2 == 0 else 1
        self.grouped = nn.Conv2d(in_channels, in_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm1 = _group_norm(in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm2 = _group_norm(out_channels)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, C, H, W]` to `[n, O, H', W']`."""
        y: Tensor = self.main(x)
        small = F.avg_pool2d(x, 2, ceil_mode=True)
        small = self.norm2(self.pointwise(torch.relu(self.norm1(self.grouped(small)))))
        return y + F.interpolate(small, size=y.shape[2:], mode="bilinear", align_corners=False)

    def branch(self) -> list[nn.Parameter]:
        """The parameters of the branch."""
        return [p for name, part in self.named_children() if name != "main" for p in part.parameters()]


def insert_lite_residuals(model: nn.Module) -> nn.Module:
    """Add a branch to every inverted residual block and every `conv2` of `model`; changes `model` and returns it.

    Raises:
        UserError: a model without such parts.
    """
    found = 0
    for parent in [*model.modules()]:
        for name, child in [*parent.named_children()]:
            residual = _around_conv2(name, child) or _around_inverted(child)
            if residual is not None:
                setattr(parent, name, residual)
                found += 1
    if not found:
        raise UserError(
            "Expected a ResNet, whose blocks have a conv2, or a network of inverted residual blocks, with conv_pw, "
            "conv_dw and conv_pwl, got neither; choose another method or --backbone"
        )
    return model


def _around_conv2(name: str, conv: nn.Module) -> LiteResidual | None:
    if name != "conv2" or not isinstance(conv, nn.Conv2d):
        return None
    return LiteResidual(conv, conv.in_channels, conv.out_channels, _pair(conv.stride), 3)


def _around_inverted(block: nn.Module) -> LiteResidual | None:
    """Of timm's `InvertedResidual`, which widens the channels (conv_pw), mixes pixels (conv_dw), narrows (conv_pwl)."""
    widen, mix, narrow = (getattr(block, name, None) for name in ("conv_pw", "conv_dw", "conv_pwl"))
    if not (isinstance(widen, nn.Conv2d) and isinstance(mix, nn.Conv2d) and isinstance(narrow, nn.Conv2d)):
        return None
    return LiteResidual(block, widen.in_channels, narrow.out_channels, _pair(mix.stride), 5)


def _pair(stride: tuple[int, ...]) -> tuple[int, int]:
    return stride[0], stride[1]


def _group_norm(channels: int) -> nn.GroupNorm:
    groups = channels // GROUP_CHANNELS if channels % GROUP_CHANNELS == 0 else 1
    return nn.GroupNorm(groups, channels)

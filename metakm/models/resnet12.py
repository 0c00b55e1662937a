"""ResNet-12 of the few-shot literature (Oreshkin et al. 2018, "TADAM"; here as in Lee et al. 2019, "MetaOptNet").

    block: leaky ReLU(shortcut(x) + norm conv(leaky norm conv(leaky norm conv(x)))), then 2x2 max pooling, then dropout
    widths 64, 160, 320, 640; leaky ReLU of slope 0.1; the shortcut is a 1x1 convolution with a norm

Dropout has rate 0.1: that of single values behind the first two blocks, drop-block (Ghiasi et al. 2018) of 5x5 pixels
behind the last two, whose rate rises there to its value over the first calls in training; here it has it from the
start, so that a run depends on nothing but its config. `dropout=0` leaves both out. Features are the spatial mean: 640
(MetaOptNet flattens for its SVM).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metakm.errors import UserError
from metakm.models.layers import BatchNorm2d, Conv2d, join_tasks, split_tasks
from metakm.models.modes import BatchNormMode
from metakm.models.registry import ImageShape, register_backbone

WIDTHS = (64, 160, 320, 640)
SLOPE = 0.1


class DropBlock(nn.Module):
    """Set squares of pixels of single channels to zero, in training; `[n, T*C, H, W]` stays (Ghiasi et al. 2018).

    Squares lie inside the feature map. What is left is scaled so that the sum of each task's mask stays. Squares larger
    than the feature map shrink to it.

    Args:
        rate: of pixels that are zero, on average.
        size: side of a square in pixels.
        channels: C, of each task.
    """

    def __init__(self, rate: float, size: int, channels: int) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise UserError(f"Expected a drop rate of 0 or more and below 1, got {rate}; pass one")
        self.rate, self.size, self.channels = rate, size, channels

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if not self.training or not self.rate:
            return x
        height, width = x.shape[2:]
        side = min(self.size, height, width)
        inner = (height - side + 1) * (width - side + 1)  # centres of squares inside the map
        gamma = self.rate * height * width / side**2 / inner  # Eq. 1 there
        kind = torch.promote_types(x.dtype, torch.float32)  # 16 bits are too coarse for the draw and for the sum
        centres = torch.rand(*x.shape[:2], height - side + 1, width - side + 1, dtype=kind, device=x.device) < gamma
        mask = 1 - F.max_pool2d(F.pad(centres.to(kind), [side - 1] * 4), side, stride=1)  # [n, T*C, H, W]
        by_task = mask.view(len(x), -1, self.channels, height, width)  # [n, T, C, H, W]
        mean = by_task.mean(dim=(0, 2, 3, 4), keepdim=True).clamp(min=1 / by_task[:, 0].numel())
        scaled = (by_task / mean).flatten(1, 2).to(x.dtype)
        return x * scaled

    def extra_repr(self) -> str:
        """Rate and size."""
        return f"{self.rate}, size={self.size}"


class ResNet12Block(nn.Module):
    """Three 3x3 convolutions and a projected shortcut; `[n, T*C, H, W]` to `[n, T*F, H/2, W/2]`."""

    def __init__(self, in_channels: int, filters: int, bn_mode: BatchNormMode, drop: nn.Module) -> None:
        super().__init__()
        channels = (in_channels, filters, filters)
        self.convs = nn.ModuleList(Conv2d(c, filters, 3, padding=1, bias=False) for c in channels)
        self.norms = nn.ModuleList(BatchNorm2d(filters, bn_mode) for _ in channels)
        self.projection = Conv2d(in_channels, filters, 1, bias=False)
        self.projection_norm = BatchNorm2d(filters, bn_mode)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        shortcut = self.projection_norm(self.projection(x))
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x), relu=norm is not self.norms[-1], leak=SLOPE)
        dropped: Tensor = self.drop(F.max_pool2d(F.leaky_relu(x + shortcut, SLOPE), 2))
        return dropped


class ResNet12(nn.Module):
    """Four blocks and a spatial mean; `[T, n, C, H, W]` to features `[T, n, F]`, `[n, C, H, W]` to `[n, F]`.

    Args:
        widths: channels of each block.
        dropout: rate behind each block, in training.

    Raises:
        UserError: a rate out of range.
    """

    carries_tasks = True

    def __init__(
        self,
        in_channels: int = 3,
        bn_mode: BatchNormMode = "transductive",
        *,
        widths: Sequence[int] = WIDTHS,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_features = in_channels, widths[-1]
        inputs = [in_channels, *widths[:-1]]
        sizes = [1 if block < 2 else 5 for block in range(len(widths))]  # 1: single values
        drops = [DropBlock(dropout, size, filters) for size, filters in zip(sizes, widths, strict=True)]
        blocks = zip(inputs, widths, drops, strict=True)
        self.blocks = nn.ModuleList(ResNet12Block(c, filters, bn_mode, drop) for c, filters, drop in blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        x = join_tasks(images, self.in_channels)  # [n, T*C, H, W]
        for block in self.blocks:
            x = block(x)
        return split_tasks(x.mean(dim=(2, 3)), images)


@register_backbone("resnet12")
def resnet12(image_shape: ImageShape, bn_mode: BatchNormMode) -> ResNet12:
    """`ResNet12` with the published widths and dropout, for images (C, H, W) of at least 16x16."""
    channels, height, width = image_shape
    if min(height, width) < 16:
        raise UserError(f"Expected images of at least 16x16 for resnet12, got {height}x{width}; it halves them 4 times")
    return ResNet12(channels, bn_mode)

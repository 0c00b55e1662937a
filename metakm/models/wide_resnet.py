"""Wide ResNet (Zagoruyko & Komodakis 2016): 6n + 4 layers, three stages of pre-activated blocks, k times as wide.

    block: x' + conv(relu norm(conv(relu norm(x)))),    x' = x, or where the shape changes conv 1x1(relu norm(x))
    widths 16, then 16k, 32k, 64k

wrn-28-10 is the deepest backbone that few-shot papers use (Rusu et al. 2019; Mangla et al. 2020). Dropout inside the
blocks, which the paper has as an option, is left out. Features are the spatial mean: 64k.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metakm.errors import UserError
from metakm.models.layers import BatchNorm2d, Conv2d, join_tasks, split_tasks
from metakm.models.modes import BatchNormMode
from metakm.models.registry import ImageShape, register_backbone


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each behind its norm and ReLU; `[n, T*C, H, W]` to `[n, T*F, H/stride, W/stride]`."""

    def __init__(self, in_channels: int, filters: int, stride: int, bn_mode: BatchNormMode) -> None:
        super().__init__()
        self.norm1, self.norm2 = BatchNorm2d(in_channels, bn_mode), BatchNorm2d(filters, bn_mode)
        self.conv1 = Conv2d(in_channels, filters, 3, stride=stride, padding=1, bias=False)
        self.conv2 = Conv2d(filters, filters, 3, padding=1, bias=False)
        self.projection: nn.Module | None = None
        if stride > 1 or in_channels != filters:
            self.projection = Conv2d(in_channels, filters, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        activated = self.norm1(x, relu=True)
        shortcut = x if self.projection is None else self.projection(activated)
        residual: Tensor = self.conv2(self.norm2(self.conv1(activated), relu=True))
        return residual + shortcut


class WideResNet(nn.Module):
    """WRN-depth-k; `[T, n, C, H, W]` to features `[T, n, 64k]`, `[n, C, H, W]` to `[n, 64k]`.

    Args:
        k: how many times as wide as a ResNet for CIFAR.

    Raises:
        UserError: `depth` is not 6n + 4, or k below 1.
    """

    carries_tasks = True

    def __init__(self, depth: int = 28, k: int = 10, in_channels: int = 3, bn_mode: BatchNormMode = "transductive"):
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise UserError(f"Expected a depth of 6n + 4 (10, 16, 22, 28, ...), got {depth}; choose one of these")
        if k < 1:
            raise UserError(f"Expected a width factor of at least 1, got {k}; the usual one is 10")
        self.in_channels, self.out_features = in_channels, 64 * k
        self.conv = Conv2d(in_channels, 16, 3, padding=1, bias=False)
        blocks, channels = [], 16
        for stage, filters in enumerate((16 * k, 32 * k, 64 * k)):
            for position in range((depth - 4) // 6):
                blocks.append(WideBlock(channels, filters, 2 if stage and not position else 1, bn_mode))
                channels = filters
        self.blocks = nn.ModuleList(blocks)
        self.norm = BatchNorm2d(channels, bn_mode)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        x = join_tasks(images, self.in_channels)  # [n, T*C, H, W]
        x = self.conv(x)
        for block in self.blocks:
            x = block(x)
        pooled = torch.mean(self.norm(x, relu=True), dim=(2, 3))  # [n, T*F]
        return split_tasks(pooled, images)


@register_backbone("wrn-<depth>-<k>")
def wide_resnet(image_shape: ImageShape, bn_mode: BatchNormMode, depth: int, k: int) -> WideResNet:
    """`WideResNet`, such as wrn-28-10, for images (C, H, W)."""
    return WideResNet(depth, k, image_shape[0], bn_mode)

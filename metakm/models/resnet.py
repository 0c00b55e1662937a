"""The CIFAR ResNet (He et al. 2016, Sec. 4.2): 6n + 2 layers, three widths, parameter-free (option A) shortcuts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metakm.errors import UserError
from metakm.models.layers import BatchNorm2d, BatchNormMode, Conv2d, join_tasks, split_tasks


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; `[n, T*C, H, W]` to `[n, T*F, H/stride, W/stride]`."""

    def __init__(self, in_channels: int, filters: int, stride: int, bn_mode: BatchNormMode) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, filters, 3, stride=stride, padding=1, bias=False)
        self.norm1 = BatchNorm2d(filters, bn_mode)
        self.conv2 = Conv2d(filters, filters, 3, padding=1, bias=False)
        self.norm2 = BatchNorm2d(filters, bn_mode)
        self.in_channels, self.filters, self.stride = in_channels, filters, stride

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        residual = self.norm2(self.conv2(self.norm1(self.conv1(x), relu=True)))
        return torch.relu(residual + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        """Option A: every `stride`-th pixel, missing channels filled with zeros, half on either side."""
        if self.stride == 1 and self.in_channels == self.filters:
            return x
        x = x[:, :, :: self.stride, :: self.stride]
        by_task = x.reshape(len(x), -1, self.in_channels, *x.shape[2:])  # [n, T, C, h, w]
        before = (self.filters - self.in_channels) // 2
        after = self.filters - self.in_channels - before
        return F.pad(by_task, (0, 0, 0, 0, before, after)).flatten(1, 2)  # [n, T*F, h, w]


class CifarResNet(nn.Module):
    """ResNet-20, -32, -44, ... for small images; `[T, n, C, H, W]` to `[T, n, 64]`, `[n, C, H, W]` to `[n, 64]`.

    Raises:
        UserError: `depth` is not 6n + 2.
    """

    def __init__(self, depth: int = 32, in_channels: int = 3, bn_mode: BatchNormMode = "transductive") -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise UserError(f"Expected a depth of 6n + 2 (8, 14, 20, 32, ...), got {depth}; choose one of these")
        widths = [16, 32, 64]
        self.in_channels = in_channels
        self.conv = Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.norm = BatchNorm2d(widths[0], bn_mode)
        blocks, channels = [], widths[0]
        for stage, filters in enumerate(widths):
            for position in range((depth - 2) // 6):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(BasicBlock(channels, filters, stride, bn_mode))
                channels = filters
        self.blocks = nn.ModuleList(blocks)
        self.out_features = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        x = join_tasks(images, self.in_channels) if images.dim() == 5 else images  # [n, T*C, H, W]
        x = self.norm(self.conv(x), relu=True)
        for block in self.blocks:
            x = block(x)
        tasks = images.shape[0] if images.dim() == 5 else 1
        features = split_tasks(x.mean(dim=(2, 3)), tasks)  # [T, n, F]
        return features if images.dim() == 5 else features[0]

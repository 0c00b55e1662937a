"""The CIFAR ResNet (He et al. 2016, Sec. 4.2): 6n + 2 layers, three widths, parameter-free (option A) shortcuts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metakm.errors import UserError, unknown_name
from metakm.models.layers import BatchNorm2d, Conv2d, join_tasks, split_tasks
from metakm.models.modes import BatchNormMode
from metakm.models.registry import ImageShape, register_backbone

Shortcut = Literal["padding", "projection", "all-projections"]


class Layers(NamedTuple):
    """The layers from which a network is built."""

    conv: type[nn.Conv2d]
    norm: Callable[[int], nn.Module]


def layers_with_task_axis(bn_mode: BatchNormMode) -> Layers:
    """Layers whose weights may have a task axis, for meta-learning."""
    return Layers(Conv2d, lambda channels: BatchNorm2d(channels, bn_mode))


PLAIN = Layers(nn.Conv2d, nn.BatchNorm2d)
"""torch's own layers, for supervised training: no task axis, running statistics, faster."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; `[n, T*C, H, W]` to `[n, T*F, H/stride, W/stride]`."""

    def __init__(self, in_channels: int, filters: int, stride: int, layers: Layers, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = layers.conv(in_channels, filters, 3, stride=stride, padding=1, bias=False)
        self.norm1 = layers.norm(filters)
        self.conv2 = layers.conv(filters, filters, 3, padding=1, bias=False)
        self.norm2 = layers.norm(filters)
        self.in_channels, self.filters, self.stride = in_channels, filters, stride
        self.projection: nn.Module | None = None
        if shortcut == "all-projections" or (shortcut == "projection" and (stride > 1 or in_channels != filters)):
            self.projection = nn.Sequential(layers.conv(in_channels, filters, 1, bias=False), layers.norm(filters))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        residual = self.norm2(self.conv2(_rectified(self.norm1, self.conv1(x))))
        return torch.relu(residual + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        """Option A: every `stride`-th pixel, missing channels filled with zeros, half on either side.

        With a projection: a 1x1 convolution of these pixels and a norm.
        """
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.projection is not None:
            projected: Tensor = self.projection(x)
            return projected
        if self.in_channels == self.filters:
            return x
        by_task = x.reshape(len(x), -1, self.in_channels, *x.shape[2:])  # [n, T, C, h, w]
        before = (self.filters - self.in_channels) // 2
        after = self.filters - self.in_channels - before
        return F.pad(by_task, (0, 0, 0, 0, before, after)).flatten(1, 2)  # [n, T*F, h, w]


def _rectified(norm: nn.Module, x: Tensor) -> Tensor:
    """ReLU of the norm of x, as one function if the layer has one."""
    rectified: Tensor = norm(x, relu=True) if isinstance(norm, BatchNorm2d) else torch.relu(norm(x))
    return rectified


class CifarResNet(nn.Module):
    """ResNet-20, -32, -44, ... for small images; `[T, n, C, H, W]` to `[T, n, 4*width]`, `[n, C, H, W]` to `[n, ...]`.

    Args:
        bn_mode: where batch statistics come from; not used with `layers`.
        width: channels of the first stage; the second and third have two and four times as many.
        shortcut: `padding` is option A, without parameters; `projection` is option B, 1x1 convolutions where the shape
            changes; `all-projections` is option C, one in every block.
        layers: the layers to build from, for example `PLAIN`; None: layers whose weights may have a task axis.
        residual_start: where the scale of the last norm of each block starts. 0 makes each block the identity at first
            (Goyal et al. 2017, Sec. 5.1); 1 is as published.

    Raises:
        UserError: `depth` is not 6n + 2, `width` below 1, or an unknown shortcut.
    """

    def __init__(
        self,
        depth: int = 32,
        in_channels: int = 3,
        bn_mode: BatchNormMode = "transductive",
        *,
        width: int = 16,
        shortcut: Shortcut = "padding",
        layers: Layers | None = None,
        residual_start: float = 1.0,
    ) -> None:
        super().__init__()
        if shortcut not in get_args(Shortcut):
            raise unknown_name("shortcut", shortcut, get_args(Shortcut))
        if width < 1:
            raise UserError(f"Expected a width of at least 1, got {width}; the published networks have 16")
        if depth < 8 or (depth - 2) % 6:
            raise UserError(f"Expected a depth of 6n + 2 (8, 14, 20, 32, ...), got {depth}; choose one of these")
        self.in_channels = in_channels
        widths, layers = [width, 2 * width, 4 * width], layers or layers_with_task_axis(bn_mode)
        self.conv = layers.conv(in_channels, width, 3, padding=1, bias=False)
        self.norm = layers.norm(width)
        blocks, channels = [], widths[0]
        for stage, filters in enumerate(widths):
            for position in range((depth - 2) // 6):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(BasicBlock(channels, filters, stride, layers, shortcut))
                channels = filters
        self.blocks = nn.ModuleList(blocks)
        self.out_features = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, BasicBlock):
                nn.init.constant_(cast(nn.Parameter, module.norm2.weight), residual_start)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        x = join_tasks(images, self.in_channels)  # [n, T*C, H, W]
        x = _rectified(self.norm, self.conv(x))
        for block in self.blocks:
            x = block(x)
        return split_tasks(x.mean(dim=(2, 3)), images)


@register_backbone("resnet<depth>")
def cifar_resnet(image_shape: ImageShape, bn_mode: BatchNormMode, depth: int) -> CifarResNet:
    """`CifarResNet` of a depth, for images (C, H, W)."""
    return CifarResNet(depth, image_shape[0], bn_mode)

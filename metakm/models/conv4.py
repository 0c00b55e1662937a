"""The four-block ConvNet of the few-shot literature (Vinyals et al. 2016; Finn et al. 2017).

MAML's Omniglot network uses strides (`downsample="stride"`, then a spatial mean: 64 features); its mini-ImageNet
network uses pooling (`downsample="pool"`, then flattening: 32 x 5 x 5 = 800 features at 84 x 84).
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

from metakm.errors import UserError, unknown_name
from metakm.models.layers import BatchNorm2d, Conv2d, join_tasks, split_tasks
from metakm.models.modes import BatchNormMode
from metakm.models.registry import ImageShape, register_backbone

Downsample = Literal["stride", "pool"]


class ConvBlock(nn.Module):
    """conv 3x3, batch norm, ReLU, and the block's downsampling by 2; `[n, T*C, H, W]` to `[n, T*F, H/2, W/2]`."""

    def __init__(self, in_channels: int, filters: int, downsample: Downsample, bn_mode: BatchNormMode) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, filters, 3, stride=2 if downsample == "stride" else 1, padding=1)
        self.norm = BatchNorm2d(filters, bn_mode)
        self.pool = downsample == "pool"
        nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        rectified: Tensor = self.norm(self.conv(x, bias_cancels=self.norm.removes_mean), relu=True, pool=self.pool)
        return rectified


class Conv4(nn.Module):
    """Four `ConvBlock`s; `[T, n, C, H, W]` to features `[T, n, F]`, `[n, C, H, W]` to `[n, F]`.

    Args:
        in_channels: channels of the images.
        filters: channels of every block.
        downsample: `stride` with a spatial mean at the end, or `pool` with flattening.
        image_size: height and width of the images in pixels; with `pool` it fixes the number of features.
        bn_mode: see `BatchNorm2d`.

    Raises:
        UserError: an unknown `downsample` or `bn_mode`, no channel or filter, or images too small to be halved four
            times by pooling.
    """

    carries_tasks = True

    def __init__(
        self,
        in_channels: int = 3,
        filters: int = 64,
        downsample: Downsample = "stride",
        image_size: int = 84,
        bn_mode: BatchNormMode = "transductive",
    ) -> None:
        super().__init__()
        if downsample not in get_args(Downsample):
            raise unknown_name("downsample", downsample, get_args(Downsample))
        if min(in_channels, filters) < 1:
            raise UserError(f"Expected at least 1 channel and 1 filter, got {in_channels} and {filters}")
        if downsample == "pool" and image_size < 16:
            raise UserError(
                f"Expected images of at least 16x16 to pool four times, got {image_size}x{image_size}; "
                'use downsample="stride"'
            )
        self.in_channels = in_channels
        channels = [in_channels, filters, filters, filters]
        self.blocks = nn.ModuleList(ConvBlock(c, filters, downsample, bn_mode) for c in channels)
        self.spatial_mean = downsample == "stride"
        self.out_features = filters if self.spatial_mean else filters * (image_size // 16) ** 2

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        x = join_tasks(images, self.in_channels)  # [n, T*C, H, W]
        for block in self.blocks:
            x = block(x)
        if self.spatial_mean:
            x = x.mean(dim=(2, 3))  # [n, T*F]
        return split_tasks(x, images)


@register_backbone("conv4-<filters>-stride")
def conv4_stride(image_shape: ImageShape, bn_mode: BatchNormMode, filters: int) -> Conv4:
    """`Conv4` with strides."""
    return _square(image_shape, bn_mode, filters, "stride")


@register_backbone("conv4-<filters>-pool")
def conv4_pool(image_shape: ImageShape, bn_mode: BatchNormMode, filters: int) -> Conv4:
    """`Conv4` with pooling."""
    return _square(image_shape, bn_mode, filters, "pool")


def _square(image_shape: ImageShape, bn_mode: BatchNormMode, filters: int, downsample: Downsample) -> Conv4:
    channels, height, width = image_shape
    if height != width:
        raise UserError(f"Expected square images for conv4-{filters}-{downsample}, got {height}x{width}; resize them")
    return Conv4(channels, filters, downsample, image_size=height, bn_mode=bn_mode)

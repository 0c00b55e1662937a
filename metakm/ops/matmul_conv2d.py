"""Convolutions of small images with many channels as matrix products.

Deep in a network, each task's images have few pixels and its kernels millions of weights. A grouped convolution of
oneDNN then takes up to eight times as long as the matrix product that it is (on a CPU; ResNet-12's last block on
images of 32 px). With the windows that the kernels see, `[G, n H' W', kh kw C/G]`, as the rows of a matrix::

    convolution      windows @ weight^T
    input gradient   the sum of grad @ weight over the windows that a pixel is in
    weight gradient  grad^T @ windows

The windows are copied, so this pays only where they are few.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from metakm.ops.conv2d import Geometry


def is_faster(
    output: Tensor, channels: int, *, stride: tuple[int, int] = (1, 1), weight_gradient: bool = False
) -> bool:
    """Whether a product takes less time than oneDNN; measured with 3x3 kernels, one thread and 64 to 640 channels.

    Args:
        output: `[n, O, H', W']`, or images of which the kernels read every `stride`-th pixel.
        channels: of the input in one group, C/G.
        stride: see output.
        weight_gradient: in which oneDNN is slower than in the other two.
    """
    n, _, height, width = output.shape
    pixels = n * (height // stride[0]) * (width // stride[1])
    return output.device.type == "cpu" and pixels * (1 if weight_gradient else 4) <= channels


def convolution(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """`[n, C, H, W]` and `[O, C/G, kh, kw]` to `[n, O, H', W']`, channels-last."""
    windows = _windows(x, weight.shape, geometry)  # [G, n, H', W', kh, kw, C/G]
    _, n, height, width = windows.shape[:4]
    product = windows.flatten(4).flatten(1, 3) @ _matrix(weight, geometry.groups).mT  # [G, n H' W', O/G]
    return product.transpose(0, 1).reshape(n, height, width, -1).permute(0, 3, 1, 2)


def input_gradient(grad: Tensor, weight: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
    """`[n, O, H', W']` and `[O, C/G, kh, kw]` to `[n, C, H, W]`, which is `shape`; channels-last."""
    (n, channels, height, width), groups = shape, geometry.groups
    up, left = geometry.padding
    padded = grad.new_zeros(n, height + 2 * up, width + 2 * left, channels)
    windows = _windows_of_padded(padded, weight.shape, geometry)  # [G, n, H', W', kh, kw, C/G], in `padded`
    products = (_rows(grad, groups) @ _matrix(weight, groups)).view(windows.shape)
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            windows[..., i, j, :] += products[..., i, j, :]  # no two windows have their (i, j) in one pixel
    inner = padded[:, up : up + height, left : left + width].permute(0, 3, 1, 2)
    return inner.contiguous(memory_format=torch.channels_last)


def weight_gradient(x: Tensor, grad: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
    """`[n, C, H, W]` and `[n, O, H', W']` to `[O, C/G, kh, kw]`, which is `shape`; channels-last."""
    windows = _windows(x, shape, geometry).flatten(4).flatten(1, 3)  # [G, n H' W', kh kw C/G]
    product = _rows(grad, geometry.groups).mT @ windows  # [G, O/G, kh kw C/G]
    return product.reshape(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)


def _windows(x: Tensor, weight_shape: torch.Size, geometry: Geometry) -> Tensor:
    """The windows `[G, n, H', W', kh, kw, C/G]` of the images."""
    up, left = geometry.padding
    return _windows_of_padded(F.pad(x.permute(0, 2, 3, 1), (0, 0, left, left, up, up)), weight_shape, geometry)


def _windows_of_padded(padded: Tensor, weight_shape: torch.Size, geometry: Geometry) -> Tensor:
    """A view `[G, n, H', W', kh, kw, C/G]` of padded images `[n, H, W, C]`."""
    (n, height, width, _), (_, channels, kh, kw) = padded.shape, weight_shape
    (down, right), (below, beside) = geometry.stride, geometry.dilation
    out_height = (height - below * (kh - 1) - 1) // down + 1
    out_width = (width - beside * (kw - 1) - 1) // right + 1
    image, line, pixel, channel = padded.stride()
    strides = (channels * channel, image, line * down, pixel * right, line * below, pixel * beside, channel)
    return padded.as_strided((geometry.groups, n, out_height, out_width, kh, kw, channels), strides)


def _rows(grad: Tensor, groups: int) -> Tensor:
    """`[n, O, H', W']` as `[G, n H' W', O/G]`."""
    return grad.permute(0, 2, 3, 1).reshape(-1, groups, grad.shape[1] // groups).transpose(0, 1)


def _matrix(weight: Tensor, groups: int) -> Tensor:
    """`[O, C/G, kh, kw]` as `[G, O/G, kh kw C/G]`."""
    return weight.permute(0, 2, 3, 1).reshape(groups, weight.shape[0] // groups, -1)

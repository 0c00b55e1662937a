"""Triton kernels for convolutions of many tasks at once, each task with its own kernels, on a GPU.

A convolution of T tasks is a grouped one, `groups = T`, channels-last. cuDNN would round it to TF32, PyTorch's default.
Here each group is a matrix product with the window gathered on the way (implicit GEMM), and the three operations of
`metakm.ops.conv2d` are two kernels::

    out[n, y, x, g, b] = sum over i, j, a of in[n, y', x', g, a] W[g, b, a, i, j]
        convolution:      y' = y s + i d - p                  a = input channels,  b = output channels
        input gradient:   y' = (y + p - i d) / s if whole     a = output channels, b = input channels
    grad W[g, o, c, i, j] = sum over n, y, x of grad[n, y, x, g, o] in[n, y', x', g, c]

float32 products are three TF32 products ("tf32x3"), which keeps float32's accuracy. Every sum has a fixed order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from metakm.ops.triton.launch import NUM_SMS, channels_last, launch

if TYPE_CHECKING:
    from metakm.ops.conv2d import Geometry

PRECISION = "tf32x3"


@triton.jit
def _gather_product(
    x_ptr, w_ptr, out_ptr,
    rows, in_height, in_width, out_height, out_width, groups, b_channels,
    w_group, w_b, w_a, w_i, w_j,
    A_CHANNELS: tl.constexpr,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    b = tl.program_id(2) * BLOCK_B + tl.arange(0, BLOCK_B)
    column = (row % out_width)[:, None]
    line = (row // out_width % out_height)[:, None]
    first_line = (row // (out_width * out_height))[:, None] * in_height  # of the image
    total = tl.zeros((BLOCK_M, BLOCK_B), dtype=tl.float32)
    w_ptr += group * w_group
    WHOLE: tl.constexpr = A_CHANNELS % BLOCK_K == 0  # then a block of k lies within one pixel (i, j) of the kernel
    for start in range(0, KERNEL_H * KERNEL_W * A_CHANNELS, BLOCK_K):
        if WHOLE:
            tap = start // A_CHANNELS
            a = tl.multiple_of(start % A_CHANNELS, BLOCK_K) + tl.arange(0, BLOCK_K)
        else:
            a = (start + tl.arange(0, BLOCK_K)) % A_CHANNELS
            tap = ((start + tl.arange(0, BLOCK_K)) // A_CHANNELS)[None, :]
        i, j = tap // KERNEL_W, tap % KERNEL_W
        if TRANSPOSED:
            y = line + PAD_H - i * DILATION_H
            x = column + PAD_W - j * DILATION_W
            inside = (row < rows)[:, None] & (y >= 0) & (x >= 0) & (y % STRIDE_H == 0) & (x % STRIDE_W == 0)
            y = y // STRIDE_H
            x = x // STRIDE_W
        else:
            y = line * STRIDE_H + i * DILATION_H - PAD_H
            x = column * STRIDE_W + j * DILATION_W - PAD_W
            inside = (row < rows)[:, None] & (y >= 0) & (x >= 0)
        inside = inside & (y < in_height) & (x < in_width)
        known = (b < b_channels)[None, :]
        if not WHOLE:
            inside = inside & (tap < KERNEL_H * KERNEL_W)
            known = known & (tl.trans(tap) < KERNEL_H * KERNEL_W)
        place = ((first_line + y) * in_width + x).to(tl.int64) * groups + group  # 64 bits: there may be 2^31 values
        values = tl.load(x_ptr + place * A_CHANNELS + a[None, :], mask=inside, other=0.0)
        at = i * w_i + j * w_j
        if not WHOLE:
            at = tl.trans(at)
        kernel = tl.load(w_ptr + at + a[:, None] * w_a + b[None, :] * w_b, mask=known, other=0.0)
        total = tl.dot(values, kernel, total, input_precision=PRECISION)
    to = (row[:, None].to(tl.int64) * groups + group) * b_channels + b[None, :]
    tl.store(out_ptr + to, total.to(out_ptr.dtype.element_ty), mask=(row < rows)[:, None] & (b < b_channels)[None, :])


@triton.jit
def _weight_product(
    x_ptr, grad_ptr, out_ptr,
    rows, in_height, in_width, out_height, out_width, groups, o_channels, rows_each, o_blocks,
    C_CHANNELS: tl.constexpr,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    group = tl.program_id(1)
    o = (tl.program_id(2) % o_blocks) * BLOCK_O + tl.arange(0, BLOCK_O)
    begin = (tl.program_id(2) // o_blocks) * BLOCK_Q
    q = begin + tl.arange(0, BLOCK_Q)  # (i, j, c)
    LENGTH: tl.constexpr = KERNEL_H * KERNEL_W * C_CHANNELS
    WHOLE: tl.constexpr = C_CHANNELS % BLOCK_Q == 0
    if WHOLE:
        tap = begin // C_CHANNELS
        c = tl.multiple_of(begin % C_CHANNELS, BLOCK_Q) + tl.arange(0, BLOCK_Q)
    else:
        tap = (q // C_CHANNELS)[None, :]
        c = q % C_CHANNELS
    i, j = tap // KERNEL_W, tap % KERNEL_W
    total = tl.zeros((BLOCK_O, BLOCK_Q), dtype=tl.float32)
    first = part * rows_each
    last = tl.minimum(first + rows_each, rows)
    for start in range(first, last, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        column = (row % out_width)[:, None]
        line = (row // out_width % out_height)[:, None]
        first_line = (row // (out_width * out_height))[:, None] * in_height
        y = line * STRIDE_H + i * DILATION_H - PAD_H
        x = column * STRIDE_W + j * DILATION_W - PAD_W
        inside = (y >= 0) & (x >= 0) & (y < in_height) & (x < in_width) & (row < last)[:, None]
        if not WHOLE:
            inside = inside & (q < LENGTH)[None, :]
        place = ((first_line + y) * in_width + x).to(tl.int64) * groups + group  # 64 bits: there may be 2^31 values
        values = tl.load(x_ptr + place * C_CHANNELS + c[None, :], mask=inside, other=0.0)  # [M, Q]
        grad = tl.load(
            grad_ptr + (row[None, :].to(tl.int64) * groups + group) * o_channels + o[:, None],
            mask=(row < last)[None, :] & (o < o_channels)[:, None],
            other=0.0,
        )  # [O, M]
        total = tl.dot(grad, values, total, input_precision=PRECISION)
    to = ((part * groups + group) * o_channels + o[:, None]) * LENGTH + q[None, :]
    tl.store(out_ptr + to, total, mask=(o < o_channels)[:, None] & (q < LENGTH)[None, :])


def convolution(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The convolution; see `metakm.ops.conv2d`.

    Raises:
        ValueError: images of other channels than the weight's, or smaller than its kernel.
    """
    height, width = (
        (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, pad, dilation in zip(
            x.shape[2:], weight.shape[2:], geometry.stride, geometry.padding, geometry.dilation, strict=True
        )
    )
    if x.shape[1] != geometry.groups * weight.shape[1] or min(height, width) < 1:
        raise ValueError(f"Expected images that fit a weight of {list(weight.shape)}, {geometry}, got {list(x.shape)}")
    kernels = weight.view(geometry.groups, -1, *weight.shape[1:])  # [G, O, C, kh, kw]
    return _products(x, kernels, geometry, (height, width), transposed=False)


def input_gradient(grad: Tensor, weight: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
    """Its derivative by the input, which has `shape`."""
    kernels = weight.view(geometry.groups, -1, *weight.shape[1:]).transpose(1, 2)  # [G, C, O, kh, kw]
    return _products(grad, kernels, geometry, (shape[2], shape[3]), transposed=True)


def weight_gradient(x: Tensor, grad: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
    """Its derivative by the weight, which has `shape`."""
    x, grad = channels_last(x), channels_last(grad)
    groups, (out_channels, channels, *kernel) = geometry.groups, shape
    out_channels //= groups
    n, _, height, width = grad.shape
    rows, length = n * height * width, kernel[0] * kernel[1] * channels
    tiles = _weight_tiles(channels, out_channels)
    o_blocks, q_blocks = triton.cdiv(out_channels, tiles["BLOCK_O"]), triton.cdiv(length, tiles["BLOCK_Q"])
    rows_each = _rows_each(rows, groups * o_blocks * q_blocks, tiles["BLOCK_M"])
    parts = triton.cdiv(rows, rows_each)
    out = torch.empty(parts, groups * out_channels, *kernel, channels, dtype=torch.float32, device=x.device)
    launch(
        _weight_product, (parts, groups, o_blocks * q_blocks),
        x, grad, out,
        rows, x.shape[2], x.shape[3], height, width, groups, out_channels, rows_each, o_blocks, channels,
        *kernel, *geometry.stride, *geometry.padding, *geometry.dilation,
        PRECISION=PRECISION, **tiles,
    )  # fmt: skip
    total = out[0] if parts == 1 else out.sum(0)
    return total.to(x.dtype).permute(0, 3, 1, 2)  # [G*O, C, kh, kw], channels-last


def _products(x: Tensor, kernels: Tensor, geometry: Geometry, size: tuple[int, int], transposed: bool) -> Tensor:
    x = channels_last(x)
    groups, b_channels, a_channels, *kernel = kernels.shape
    rows = x.shape[0] * size[0] * size[1]
    tiles = _product_tiles(a_channels, b_channels)
    grid = triton.cdiv(rows, tiles["BLOCK_M"]), groups, triton.cdiv(b_channels, tiles["BLOCK_B"])
    out = torch.empty(x.shape[0], *size, groups * b_channels, dtype=x.dtype, device=x.device)
    launch(
        _gather_product, grid,
        x, kernels, out,
        rows, x.shape[2], x.shape[3], *size, groups, b_channels, *kernels.stride(), a_channels,
        *kernel, *geometry.stride, *geometry.padding, *geometry.dilation,
        TRANSPOSED=transposed, PRECISION=PRECISION, **tiles,
    )  # fmt: skip
    return out.permute(0, 3, 1, 2)


# Tile sizes were chosen by timing conv4-64's layers on an H200; those for other sizes follow by analogy.
def _product_tiles(a_channels: int, b_channels: int) -> dict[str, int]:
    block_k = next((k for k in (64, 32) if a_channels % k == 0), 16)
    return {"BLOCK_M": 32, "BLOCK_B": _block(b_channels), "BLOCK_K": block_k, "num_warps": 4, "num_stages": 2}


def _weight_tiles(channels: int, out_channels: int) -> dict[str, int]:
    block_q = 32 if channels % 32 == 0 else 16
    return {"BLOCK_M": 64, "BLOCK_O": _block(out_channels), "BLOCK_Q": block_q, "num_warps": 4, "num_stages": 3}


def _rows_each(rows: int, others: int, block: int) -> int:
    """Rows that a program sums, for about four programs a processor, `others` being those that share a part."""
    parts = max(1, min(triton.cdiv(4 * NUM_SMS, others), triton.cdiv(rows, block)))
    return int(triton.cdiv(triton.cdiv(rows, parts), block) * block)


def _block(channels: int) -> int:
    """A power of two from 16, the least of a matrix product, to 64."""
    return int(max(16, min(64, triton.next_power_of_2(channels))))

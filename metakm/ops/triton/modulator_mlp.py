"""Triton kernels for `metakm.ops.modulator_mlp`, whose formulas they follow.

A program holds some columns of C and loops over the tasks. Sums over columns are stored as partial sums, one per
program, and added up by a second launch. Every sum has a fixed order. Tensors are as there: C `[k, M]`, U1 and U2
`[T, k, k]`, Y and G `[T, O, k, M/O]`, channels innermost.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from metakm.ops.triton.launch import launch

BLOCK_M = 32


@triton.jit
def _tanh(x):
    s = x * x
    series = x * (1 + s * (-1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * (62 / 2835 - s * (1382 / 155925))))))
    e = tl.exp(-2 * tl.abs(x))
    large = (1 - e) / (1 + e)
    return tl.where(tl.abs(x) < 0.3, series, tl.where(x < 0, -large, large))


@triton.jit
def _square(ptr, t, k, K: tl.constexpr):
    """The matrix of task t, padded by zeros to `[K, K]`."""
    i = tl.arange(0, K)
    there = (i < k)[:, None] & (i < k)[None, :]
    return tl.load(ptr + t * k * k + i[:, None] * k + i[None, :], mask=there, other=0.0)


@triton.jit
def _outer(ptr, values, t, k, K: tl.constexpr):
    """The inverse of `_square`."""
    i = tl.arange(0, K)
    tl.store(ptr + t * k * k + i[:, None] * k + i[None, :], values, mask=(i < k)[:, None] & (i < k)[None, :])


@triton.jit
def _dot(a, b):
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _columns(columns, channels, k, K: tl.constexpr, BLOCK: tl.constexpr):
    """Where this program's columns are in C and in one task of Y, `[K, BLOCK]` each, and which of them there are."""
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i = tl.arange(0, K)
    of_y = (m // channels * k * channels + m % channels)[None, :] + i[:, None] * channels
    return i[:, None] * columns + m[None, :], of_y, (i < k)[:, None] & (m < columns)[None, :]


@triton.jit
def _forward_kernel(
    c_ptr, first_ptr, second_ptr, y_ptr, columns, channels, k, K: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    t = tl.program_id(1)
    of_c, place, there = _columns(columns, channels, k, K, BLOCK)
    c = tl.load(c_ptr + of_c, mask=there, other=0.0)
    hidden = _tanh(_dot(_square(first_ptr, t, k, K), c))
    y = _dot(_square(second_ptr, t, k, K), hidden)
    tl.store(y_ptr + t * k * columns + place, y, mask=there)


@triton.jit
def _backward_kernel(
    g_ptr, c_ptr, first_ptr, second_ptr, for_c_ptr, parts_ptr,
    tasks, columns, channels, k, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    of_c, place, there = _columns(columns, channels, k, K, BLOCK)
    c = tl.load(c_ptr + of_c, mask=there, other=0.0)
    own = parts_ptr + tl.program_id(0) * 2 * tasks * k * k
    for_c = tl.zeros((K, BLOCK), dtype=tl.float32)
    for t in range(tasks):
        first = _square(first_ptr, t, k, K)
        second = _square(second_ptr, t, k, K)
        g = tl.load(g_ptr + t * k * columns + place, mask=there, other=0.0)
        hidden = _tanh(_dot(first, c))
        inner = _dot(tl.trans(second), g) * (1 - hidden * hidden)  # A
        for_c += _dot(tl.trans(first), inner)
        _outer(own, _dot(inner, tl.trans(c)), t, k, K)
        _outer(own + tasks * k * k, _dot(g, tl.trans(hidden)), t, k, K)
    tl.store(for_c_ptr + of_c, for_c, mask=there)


@triton.jit
def _second_kernel(
    v_columns_ptr, v_first_ptr, v_second_ptr, g_ptr, c_ptr, first_ptr, second_ptr, for_g_ptr, for_c_ptr, parts_ptr,
    tasks, columns, channels, k, WITH_COLUMNS: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    of_c, place, there = _columns(columns, channels, k, K, BLOCK)
    c = tl.load(c_ptr + of_c, mask=there, other=0.0)
    if WITH_COLUMNS:
        v_c = tl.load(v_columns_ptr + of_c, mask=there, other=0.0)
    own = parts_ptr + tl.program_id(0) * 2 * tasks * k * k
    for_c = tl.zeros((K, BLOCK), dtype=tl.float32)
    for t in range(tasks):
        first = _square(first_ptr, t, k, K)
        second = _square(second_ptr, t, k, K)
        v_first = _square(v_first_ptr, t, k, K)
        v_second = _square(v_second_ptr, t, k, K)
        g = tl.load(g_ptr + t * k * columns + place, mask=there, other=0.0)
        hidden = _tanh(_dot(first, c))
        slope = 1 - hidden * hidden  # D
        received = _dot(tl.trans(second), g)  # R
        inner = received * slope  # A
        mixed = _dot(v_first, c)  # B
        if WITH_COLUMNS:
            mixed += _dot(first, v_c)
        passed = mixed * slope  # E
        bent = (_dot(tl.trans(v_second), g) - 2 * received * mixed * hidden) * slope  # Q
        tl.store(for_g_ptr + t * k * columns + place, _dot(v_second, hidden) + _dot(second, passed), mask=there)
        for_c += _dot(tl.trans(v_first), inner) + _dot(tl.trans(first), bent)
        for_first = _dot(bent, tl.trans(c))
        if WITH_COLUMNS:
            for_first += _dot(inner, tl.trans(v_c))
        _outer(own, for_first, t, k, K)
        _outer(own + tasks * k * k, _dot(g, tl.trans(passed)), t, k, K)
    tl.store(for_c_ptr + of_c, for_c, mask=there)


def forward(columns: Tensor, first: Tensor, second: Tensor, out_channels: int) -> Tensor:
    """Y."""
    (k, m), tasks = columns.shape, first.shape[0]
    y = columns.new_empty(tasks, out_channels, k, m // out_channels)
    launch(
        _forward_kernel, (triton.cdiv(m, BLOCK_M), tasks),
        *_contiguous(columns, first, second), y, m, m // out_channels, k, K=_padded(k), BLOCK=BLOCK_M,
    )  # fmt: skip
    return y


def backward(grad: Tensor, columns: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """gC, gU1, gU2."""
    for_c, parts = _results(columns, first)
    tasks, _, k, channels = grad.shape
    launch(
        _backward_kernel, (len(parts),),
        *_contiguous(grad, columns, first, second), for_c, parts,
        tasks, columns.shape[1], channels, k, K=_padded(k), BLOCK=BLOCK_M,
    )  # fmt: skip
    for_first, for_second = parts.sum(0)
    return for_c, for_first, for_second


def double_backward(
    cotangents: tuple[Tensor | None, Tensor | None, Tensor | None],
    grad: Tensor,
    columns: Tensor,
    first: Tensor,
    second: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `cotangents` of `backward`'s results give for G, C, U1 and U2."""
    v_columns, v_first, v_second = cotangents
    v_first = torch.zeros_like(first) if v_first is None else v_first
    v_second = torch.zeros_like(second) if v_second is None else v_second
    for_c, parts = _results(columns, first)
    grad = grad.contiguous()
    for_g = torch.empty_like(grad)
    tasks, _, k, channels = grad.shape
    launch(
        _second_kernel, (len(parts),),
        *_contiguous(columns if v_columns is None else v_columns, v_first, v_second, grad, columns, first, second),
        for_g, for_c, parts, tasks, columns.shape[1], channels, k,
        WITH_COLUMNS=v_columns is not None, K=_padded(k), BLOCK=BLOCK_M,
    )  # fmt: skip
    for_first, for_second = parts.sum(0)
    return for_g, for_c, for_first, for_second


def _results(columns: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Buffers of C's shape, and for the partial sums of U1's and U2's shape, `[parts, 2, T, k, k]`."""
    k, m = columns.shape
    return columns.new_empty(k, m), columns.new_empty(triton.cdiv(m, BLOCK_M), 2, *first.shape)


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]


def _padded(k: int) -> int:
    return int(max(16, triton.next_power_of_2(k)))

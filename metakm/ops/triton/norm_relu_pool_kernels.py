"""Triton's part of `metakm.ops.triton.norm_relu_pool`; the formulas are those of `metakm.ops.norm_relu_pool`.

Tensors are channels-last, `[n, H, W, C]` in memory. Of each derivative the first kernel sums by channel, in parts; the
second adds the parts up and computes by window: 2x2 pixels with pooling (fewer at an odd border, where no output is),
else one pixel. A window's place, 0 to 3, says which pixel is its maximum. Every sum has a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _offsets(pixel, c, channels):
    """Where the channels of a pixel or window are; 64 bits, for a tensor may have more than 2^31 values."""
    return pixel.to(tl.int64) * channels + c[None, :]


@triton.jit
def sum_kernel(
    x_ptr, parts_ptr, rows, channels, rows_each, n_parts,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums of x - s and of its square, s being the first row: without the cancellation of large means."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = c < channels
    shift = tl.load(x_ptr + c, mask=known, other=0.0).to(tl.float32)[None, :]
    first = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    second = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    begin = tl.program_id(0) * rows_each
    end = tl.minimum(begin + rows_each, rows)
    for start in range(begin, end, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        there = (row < end)[:, None] & known[None, :]
        x = tl.load(x_ptr + _offsets(row[:, None], c, channels), mask=there, other=0.0).to(tl.float32)
        x = tl.where(there, x - shift, 0.0)
        first += x
        second += x * x
    to = parts_ptr + tl.program_id(0) * channels + c
    tl.store(to, tl.sum(first, 0), mask=known)
    tl.store(to + n_parts * channels, tl.sum(second, 0), mask=known)


@triton.jit
def _total(parts_ptr, which, n_parts, c, channels, PARTS: tl.constexpr):
    part = which * n_parts + tl.arange(0, PARTS)
    there = (tl.arange(0, PARTS) < n_parts)[:, None] & (c < channels)[None, :]
    return tl.sum(tl.load(parts_ptr + part[:, None] * channels + c[None, :], mask=there, other=0.0), 0)


@triton.jit
def forward_kernel(
    x_ptr, weight_ptr, bias_ptr, parts_ptr, y_ptr, places_ptr, mean_ptr, inverse_ptr,
    windows, height, width, high, wide, channels, count, n_parts, eps,
    POOL: tl.constexpr, PARTS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Mean and r from the parts of `sum_kernel`; y, and with pooling its indices."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = c < channels
    shift = tl.load(x_ptr + c, mask=known, other=0.0).to(tl.float32)
    off = _total(parts_ptr, 0, n_parts, c, channels, PARTS) / count
    mean = shift + off
    variance = _total(parts_ptr, 1, n_parts, c, channels, PARTS) / count - off * off
    variance = tl.where(variance < 0, 0.0, variance)  # a NaN stays one
    inverse = 1.0 / tl.sqrt(variance + eps)
    if tl.program_id(0) == 0:
        tl.store(mean_ptr + c, mean, mask=known)
        tl.store(inverse_ptr + c, inverse, mask=known)
    weight = tl.load(weight_ptr + c, mask=known, other=0.0)
    bias = tl.load(bias_ptr + c, mask=known, other=0.0)
    sign = tl.where(weight > 0, 1.0, tl.where(weight < 0, -1.0, 0.0))[None, :]
    window = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    there = (window < windows)[:, None] & known[None, :]
    if POOL:
        image, line, column = window // (high * wide), window // wide % high, window % wide
        pixel = (image * height + 2 * line) * width + 2 * column
        best = tl.load(x_ptr + _offsets(pixel[:, None], c, channels), mask=there, other=0.0).to(tl.float32)
        place = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.int32)
        for k in tl.static_range(1, 4):
            at = pixel + (k // 2) * width + k % 2
            x = tl.load(x_ptr + _offsets(at[:, None], c, channels), mask=there, other=0.0).to(tl.float32)
            larger = x * sign > best * sign
            best = tl.where(larger, x, best)
            place = tl.where(larger, k, place)
        tl.store(places_ptr + _offsets(window[:, None], c, channels), place.to(tl.uint8), mask=there)
    else:
        best = tl.load(x_ptr + _offsets(window[:, None], c, channels), mask=there, other=0.0).to(tl.float32)
    y = (best - mean[None, :]) * (weight * inverse)[None, :] + bias[None, :]
    y = tl.where(y < 0, 0.0, y)  # a NaN stays one
    tl.store(y_ptr + _offsets(window[:, None], c, channels), y.to(y_ptr.dtype.element_ty), mask=there)


@triton.jit
def _rectified(grad_ptr, y_ptr, places_ptr, window, c, channels, there, POOL: tl.constexpr):
    """Return g and the place of each window."""
    at = _offsets(window[:, None], c, channels)
    y = tl.load(y_ptr + at, mask=there, other=0.0).to(tl.float32)
    g = tl.load(grad_ptr + at, mask=there, other=0.0).to(tl.float32)
    g = tl.where(y <= 0, 0.0, g)
    if POOL:
        place = tl.load(places_ptr + at, mask=there, other=0).to(tl.int32)
    else:
        place = tl.zeros_like(g).to(tl.int32)
    return g, place


@triton.jit
def _windows(cell, end, known, height, width, high, wide, POOL: tl.constexpr):
    """Of each cell below `end`: image, line and column, whether it is there, has an output, and where that is."""
    tall, broad = high, wide
    if POOL:  # cells at an odd border have pixels, but no output
        tall, broad = (height + 1) // 2, (width + 1) // 2
    image, line, column = cell // (tall * broad), cell // broad % tall, cell % broad
    within = (cell < end)[:, None] & known[None, :]
    full = within & ((line < high) & (column < wide))[:, None]
    return image, line, column, within, full, (image * high + line) * wide + column


@triton.jit
def _pixels(image, line, column, k: tl.constexpr, within, c, height, width, channels, POOL: tl.constexpr):
    """Where pixel k of each cell is, and whether it is there."""
    up, left = line, column
    if POOL:
        up, left = 2 * line + k // 2, 2 * column + k % 2
    there = within & ((up < height) & (left < width))[:, None]
    return _offsets(((image * height + up) * width + left)[:, None], c, channels), there


@triton.jit
def reduce_kernel(
    v_ptr, x_ptr, grad_ptr, y_ptr, places_ptr, mean_ptr, inverse_ptr, parts_ptr,
    windows, height, width, high, wide, channels, windows_each, n_parts,
    SECOND: tl.constexpr, POOL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """First derivative: sum(g), sum(g G x^). Second: sum(v), sum(v x^), sum(g G v)."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = c < channels
    mean = tl.load(mean_ptr + c, mask=known, other=0.0)[None, :]
    inverse = tl.load(inverse_ptr + c, mask=known, other=0.0)[None, :]
    sum_0 = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    sum_1 = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    sum_2 = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    begin = tl.program_id(0) * windows_each
    end = tl.minimum(begin + windows_each, windows)
    for start in range(begin, end, BLOCK_R):
        cell = start + tl.arange(0, BLOCK_R)
        image, line, column, within, full, window = _windows(cell, end, known, height, width, high, wide, POOL)
        g, place = _rectified(grad_ptr, y_ptr, places_ptr, window, c, channels, full, POOL)
        if SECOND:
            for k in tl.static_range(4 if POOL else 1):
                at, there = _pixels(image, line, column, k, within, c, height, width, channels, POOL)
                v = tl.load(v_ptr + at, mask=there, other=0.0).to(tl.float32)
                x = tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32)
                sum_0 += v
                sum_1 += v * (x - mean) * inverse
                sum_2 += tl.where(place == k, g * v, 0.0)
        else:
            up, left = line[:, None], column[:, None]
            if POOL:
                up, left = 2 * up + place // 2, 2 * left + place % 2
            at = _offsets((image[:, None] * height + up) * width + left, c, channels)
            x = tl.load(x_ptr + at, mask=full, other=0.0).to(tl.float32)
            sum_0 += g
            sum_1 += g * (x - mean) * inverse
    to = parts_ptr + tl.program_id(0) * channels + c
    tl.store(to, tl.sum(sum_0, 0), mask=known)
    tl.store(to + n_parts * channels, tl.sum(sum_1, 0), mask=known)
    if SECOND:
        tl.store(to + 2 * n_parts * channels, tl.sum(sum_2, 0), mask=known)


@triton.jit
def backward_kernel(
    x_ptr, grad_ptr, y_ptr, places_ptr, weight_ptr, mean_ptr, inverse_ptr, parts_ptr,
    out_ptr, sum_gx_ptr, sum_g_ptr,
    windows, height, width, high, wide, channels, count, n_parts,
    POOL: tl.constexpr, PARTS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradients of x, gamma and beta from the parts of `reduce_kernel`."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = c < channels
    mean = tl.load(mean_ptr + c, mask=known, other=0.0)[None, :]
    inverse = tl.load(inverse_ptr + c, mask=known, other=0.0)[None, :]
    scale = tl.load(weight_ptr + c, mask=known, other=0.0)[None, :] * inverse
    sum_g = _total(parts_ptr, 0, n_parts, c, channels, PARTS)
    sum_gx = _total(parts_ptr, 1, n_parts, c, channels, PARTS)
    if tl.program_id(0) == 0:
        tl.store(sum_g_ptr + c, sum_g, mask=known)
        tl.store(sum_gx_ptr + c, sum_gx, mask=known)
    cell = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    image, line, column, within, full, window = _windows(cell, windows, known, height, width, high, wide, POOL)
    g, place = _rectified(grad_ptr, y_ptr, places_ptr, window, c, channels, full, POOL)
    for k in tl.static_range(4 if POOL else 1):
        at, there = _pixels(image, line, column, k, within, c, height, width, channels, POOL)
        normalised = (tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32) - mean) * inverse
        own = tl.where(place == k, g, 0.0)
        out = scale * (own - (sum_g[None, :] + normalised * sum_gx[None, :]) / count)
        tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def second_kernel(
    v_ptr, a_ptr, b_ptr, x_ptr, grad_ptr, y_ptr, places_ptr, weight_ptr, mean_ptr, inverse_ptr,
    sum_gx_ptr, sum_g_ptr, parts_ptr, for_g_ptr, for_x_ptr, for_weight_ptr,
    windows, height, width, high, wide, channels, count, n_parts,
    WITH_A: tl.constexpr, WITH_B: tl.constexpr,
    POOL: tl.constexpr, PARTS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """What cotangents (v, a, b) of `backward_kernel`'s results give for gy, x and gamma."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = c < channels
    mean = tl.load(mean_ptr + c, mask=known, other=0.0)
    inverse = tl.load(inverse_ptr + c, mask=known, other=0.0)
    scale = tl.load(weight_ptr + c, mask=known, other=0.0) * inverse
    sum_gx = tl.load(sum_gx_ptr + c, mask=known, other=0.0)
    sum_g = tl.load(sum_g_ptr + c, mask=known, other=0.0)
    sum_v = _total(parts_ptr, 0, n_parts, c, channels, PARTS)
    sum_vx = _total(parts_ptr, 1, n_parts, c, channels, PARTS)
    s = _total(parts_ptr, 2, n_parts, c, channels, PARTS) - (sum_v * sum_g + sum_vx * sum_gx) / count
    if tl.program_id(0) == 0:
        tl.store(for_weight_ptr + c, inverse * s, mask=known)
    p = -scale * sum_gx * inverse / count
    q = -scale * sum_vx * inverse / count
    shift = -scale * sum_v / count
    if WITH_A:
        q += tl.load(a_ptr + c, mask=known, other=0.0) * inverse
    if WITH_B:
        shift += tl.load(b_ptr + c, mask=known, other=0.0)
    slope = -(scale * inverse * s + p * sum_vx + q * sum_gx) * inverse / count
    constant = -(p * sum_v + q * sum_g) / count
    cell = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    image, line, column, within, full, window = _windows(cell, windows, known, height, width, high, wide, POOL)
    g, place = _rectified(grad_ptr, y_ptr, places_ptr, window, c, channels, full, POOL)
    for_g = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    for k in tl.static_range(4 if POOL else 1):
        at, there = _pixels(image, line, column, k, within, c, height, width, channels, POOL)
        v = tl.load(v_ptr + at, mask=there, other=0.0).to(tl.float32)
        centred = tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32) - mean[None, :]
        own = place == k
        for_x = p[None, :] * v + q[None, :] * tl.where(own, g, 0.0) + slope[None, :] * centred + constant[None, :]
        tl.store(for_x_ptr + at, for_x.to(for_x_ptr.dtype.element_ty), mask=there)
        for_g = tl.where(own, scale[None, :] * v + q[None, :] * centred + shift[None, :], for_g)
    to = _offsets(window[:, None], c, channels)
    y = tl.load(y_ptr + to, mask=full, other=0.0).to(tl.float32)
    for_g = tl.where(y <= 0, 0.0, for_g)
    tl.store(for_g_ptr + to, for_g.to(for_g_ptr.dtype.element_ty), mask=full)

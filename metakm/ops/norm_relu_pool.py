"""Batch normalisation, optional 2x2 max-pooling, and leaky ReLU, with first and second derivatives in closed form.

For one channel with M values, mean mu, r = 1 / sqrt(var + eps), x^ = (x - mu) r, and m[.] the mean over the M values.
G gathers the values that are their window's maximum of gamma x^ + beta, and S, its transpose, scatters back to where
they came from; without pooling, both are the identity. The activation multiplies negative values by the leak: 0 is
ReLU, 1 is none. It commutes with the maximum, so it sees only the maxima::

    y  = relu(gamma G x^ + beta)
    g  = gy where y > 0, else leak gy                 as small as y; S g is the gradient of gamma x^ + beta
    P(u) = u - m[u] - x^ m[u x^]                      a symmetric projection: sum(u P(v)) = sum(P(u) v)
    gx = gamma r P(S g),   ggamma = sum(S g x^) = sum(g G x^),   gbeta = sum(S g) = sum(g)

The second-order graph needs the derivatives of (gx, ggamma, gbeta) with respect to (gy, x, gamma). With cotangents
(v, a, b) and s = sum(v P(S g)) = sum(g G v) - M m[v] m[S g] - M m[v x^] m[S g x^]::

    for gy:     gamma r G P(v) + a G x^ + b where y > 0, else leak times that
    for gamma:  r s
    for x:      p P(v) + q P(S g) - (gamma r^2 s / M) x^    with p = -gamma r^2 m[S g x^], q = a r - gamma r^2 m[v x^]

Each is v, S g or G v times a number by channel, plus an affine map of x or G x by channel. With pooling, the maxima are
those of x itself (or of -x, where gamma < 0), so no tensor of the size of x is normalised, rectified or filled with
zeros; of that size, the graph keeps only x and gx.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metakm.ops.autograd import last_derivative, without_autocast
from metakm.ops.triton import has_kernels


def batch_norm_relu(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, leak: float = 0.0, pool: bool = False
) -> Tensor:
    """relu(batch_norm(x)) of `[n, C, H, W]` with the batch's own statistics.

    Twice differentiable; a third derivative raises NotImplementedError.

    With `pool`, the maxima of its 2x2 windows, `[n, C, H/2, W/2]`; an odd last row or column counts in the statistics.

    Args:
        weight: gamma, `[C]`.
        bias: beta, `[C]`.
        leak: what negative values are multiplied by: 0 is ReLU, 1 no activation.
    """
    if pool or _has_kernels(x, leak):  # then `_pixels` is a view, and the GPU kernels know where a pixel is
        x = x.contiguous(memory_format=torch.channels_last)
    output: Tensor = _BatchNormReLU.apply(x, weight, bias, eps, leak, pool)
    return output


def _has_kernels(x: Tensor, leak: float) -> bool:
    return leak == 0 and has_kernels(x)


def _rectified(u: Tensor, leak: float) -> Tensor:
    """The activation, in place."""
    if leak == 1:
        return u
    return u.relu_() if leak == 0 else torch.ops.aten.leaky_relu_(u, leak)


def _where_positive(g: Tensor, y: Tensor | None, leak: float) -> Tensor:
    """`g` where y > 0, else leak g; y is None if the leak is 1."""
    if y is None:
        return g
    relu, leaky = torch.ops.aten.threshold_backward, torch.ops.aten.leaky_relu_backward
    kept: Tensor = relu(g, y, 0) if leak == 0 else leaky(g, y, leak, True)
    return kept


class _BatchNormReLU(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, leak: float, pool: bool) -> Tensor:
        ctx.leak = leak
        if _has_kernels(x, leak):
            from metakm.ops.triton import norm_relu_pool as kernels

            y, mean, inverse, pool_indices = kernels.forward(x, weight, bias, eps, pool)
            ctx.save_for_backward(x, x, weight, mean, inverse, y, pool_indices)
            return y
        if pool:
            mean, inverse = _statistics(x, weight, eps)
            x_y, pool_indices = _maxima(x, weight)
            normalised = _affine(x_y, mean, weight * inverse, bias)
        else:
            normalised, mean, inverse = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
            x_y, pool_indices = x, None
        y = _rectified(normalised, leak)
        ctx.save_for_backward(x, x_y, weight, mean, inverse, None if leak == 1 else y, pool_indices)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, x_y, weight, mean, inverse, y, pool_indices = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = _Backward.apply(
            grads[0], x, weight, x_y.detach(), mean, inverse, None if y is None else y.detach(), pool_indices, ctx.leak
        )
        return grad_x, grad_weight, grad_bias, *[None] * 3


class _Backward(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        grad_y: Tensor,
        x: Tensor,
        weight: Tensor,
        x_y: Tensor,
        mean: Tensor,
        inverse: Tensor,
        y: Tensor | None,
        pool_indices: Tensor | None,
        leak: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.leak = leak
        if _has_kernels(x, leak):
            from metakm.ops.triton import norm_relu_pool as kernels

            assert y is not None
            results = kernels.backward(grad_y, x, weight, kernels.Forward(y, mean, inverse, pool_indices))
            ctx.save_for_backward(grad_y, x, x_y, weight, mean, inverse, y, pool_indices, *results[1:])
            return results
        g = _where_positive(grad_y, y, leak)
        if pool_indices is None:
            grad_x, sum_gx, sum_g = _batch_norm_backward(g, x, weight, mean, inverse, with_projection=True)
        else:
            _, sum_gx, sum_g = _batch_norm_backward(g, x_y, weight, mean, inverse)
            scale = weight * inverse
            minus_mean = scale / -_count(x)
            grad_x = _affine(x, mean, minus_mean * inverse * sum_gx, minus_mean * sum_g)
            _scatter_add(grad_x, g, scale, pool_indices)
        ctx.save_for_backward(g, x, x_y, weight, mean, inverse, y, pool_indices, sum_gx, sum_g)
        return grad_x, sum_gx, sum_g

    @staticmethod
    @without_autocast
    @last_derivative
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        v, a, b = grads
        g, x, x_y, weight, mean, inverse, y, pool_indices, sum_gx, sum_g = ctx.saved_tensors
        if _has_kernels(x, ctx.leak):
            from metakm.ops.triton import norm_relu_pool as kernels

            saved = kernels.Forward(y, mean, inverse, pool_indices)
            return *kernels.double_backward((v, a, b), g, x, weight, saved, (sum_gx, sum_g)), *[None] * 6
        # -m[u] = sum(u) minus; few operations per channel, because they cost most in small networks
        minus = -1 / _count(x)
        scale = weight * inverse
        unit = scale * inverse * minus
        p, q = unit * sum_gx, torch.zeros_like(mean)
        sum_v = sum_vx = s = q
        if v is not None:
            v_y = _gather(v, pool_indices)
            _, sum_vx, sum_v = _batch_norm_backward(v, x, weight, mean, inverse)
            s = _channel_dot(g, v_y, mean).addcmul(sum_v, sum_g, value=minus).addcmul(sum_vx, sum_gx, value=minus)
            q = unit * sum_vx
        if a is not None:
            q = torch.addcmul(q, inverse, a)
        slope = (unit * s).addcmul(p, sum_vx, value=minus).addcmul(q, sum_gx, value=minus) * inverse
        for_x = _affine(x, mean, slope, (p * sum_v).addcmul(q, sum_g) * minus)
        _scatter_add(for_x, g, q, pool_indices)
        shift = scale * sum_v * minus
        for_g = _affine(x_y, mean, q, shift if b is None else shift + b)
        if v is not None:
            for_x.addcmul_(v, _column(p, x))
            for_g.addcmul_(v_y, _column(scale, x))
        return _where_positive(for_g, y, ctx.leak), for_x, inverse * s, *[None] * 6


def _statistics(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and r by channel, in the weight's precision, without the normalised x."""
    averages = torch.zeros_like(weight), torch.ones_like(weight)  # unused, but their type determines that of the result
    mean, variance = torch.batch_norm_update_stats(x, *averages, 0.0)
    return mean, torch.rsqrt(variance + eps)


def _maxima(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """G x and its `pool_indices` in the plane, both `[n, C, H/2, W/2]`."""
    signs = weight.sign()
    look = not x.is_cuda  # on a GPU without our kernels, checking the signs would synchronize
    rising = look and bool((signs > 0).all())
    ordered = x if rising else x * _column(signs, x)  # as gamma x^ + beta is
    maxima, pool_indices = torch.ops.aten.max_pool2d_with_indices(ordered, (2, 2), (2, 2))
    if rising:
        return maxima, pool_indices
    nowhere_zero = look and bool(signs.all())
    return maxima * _column(signs, x) if nowhere_zero else _gather(x, pool_indices), pool_indices


def _gather(u: Tensor, pool_indices: Tensor | None) -> Tensor:
    """G u: the values of `[n, C, H, W]` at the `pool_indices` `[n, C, h, w]` in the plane, channels last."""
    if pool_indices is None:
        return u
    batch, channels, height, width = pool_indices.shape
    gathered = _pixels(u).gather(1, _pixels(pool_indices))  # [n, h*w, C]
    return gathered.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _scatter_add(out: Tensor, u: Tensor, factor: Tensor, pool_indices: Tensor | None) -> None:
    """Add S(factor u) to `out` `[n, C, H, W]`, channels last where pooled; `factor` is by channel."""
    if pool_indices is None:
        out.addcmul_(u, _column(factor, u))
        return
    batch, channels, height, width = out.shape
    pixels = out.permute(0, 2, 3, 1).view(batch, height * width, channels)  # must be a view, because it is written to
    pixels.scatter_add_(1, _pixels(pool_indices), _pixels(u * _column(factor, u)))


def _pixels(u: Tensor) -> Tensor:
    return u.permute(0, 2, 3, 1).flatten(1, 2)  # [n, H*W, C]


def _affine(x: Tensor, mean: Tensor, slope: Tensor, shift: Tensor) -> Tensor:
    """Return slope (x - mean) + shift by channel, in one pass, with batch norm's inference kernel."""
    return torch.native_batch_norm(x, slope, shift, mean, torch.ones_like(mean), False, 0.0, 0.0)[0]


def _batch_norm_backward(
    u: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor, *, with_projection: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gamma r P(u) if needed (x must then be the whole batch), and per channel sum(u x^) and sum(u)."""
    projected, sum_ux, sum_u = torch.ops.aten.native_batch_norm_backward(
        u, x, weight, None, None, mean, inverse, True, 0.0, (with_projection, True, True)
    )
    return projected, sum_ux, sum_u


def _channel_dot(u: Tensor, v: Tensor, like: Tensor) -> Tensor:
    """sum(u v) per channel, `[C]`, without a temporary: batch norm's gamma gradient at mean 0 and r = 1."""
    zeros = torch.zeros_like(like)
    ones = torch.ones_like(like)
    return _batch_norm_backward(u, v, ones, zeros, ones)[1]


def _count(x: Tensor) -> int:
    return x.numel() // x.shape[1]


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype)[:, None, None]  # [C, 1, 1]

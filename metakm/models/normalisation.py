"""Batch normalisation followed by ReLU, with first and second derivatives in closed form.

For one channel with M values, mean mu, r = 1 / sqrt(var + eps), x^ = (x - mu) r, and m[.] the mean over the M values::

    y  = relu(gamma x^ + beta)
    g  = gy where y > 0, else 0
    P(u) = u - m[u] - x^ m[u x^]                      a symmetric projection: sum(u P(v)) = sum(P(u) v)
    gx = gamma r P(g),   ggamma = sum(g x^),   gbeta = sum(g)

The second-order graph needs the derivatives of (gx, ggamma, gbeta) with respect to (gy, x, gamma). With cotangents
(v, a, b) and s = sum(v P(g)) = sum(v g) - M m[v] m[g] - M m[v x^] m[g x^]::

    for gy:     (gamma r P(v) + a x^ + b) where y > 0
    for gamma:  r s
    for x:      -r (m[g x^] gamma r P(v) + m[v x^] gx) - (gamma r^2 s / M) x^ + a r P(g)

P costs one call of the fused `native_batch_norm_backward`, whose other outputs are the two means it contains.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def batch_norm_relu(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """relu(batch_norm(x)) of `[n, C, H, W]` with the batch's own statistics; twice differentiable.

    Args:
        weight: gamma, `[C]`.
        bias: beta, `[C]`.
    """
    output: Tensor = _BatchNormReLU.apply(x, weight, bias, eps)
    return output


class _BatchNormReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        normalised, mean, inverse = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        y = normalised.relu_()
        ctx.save_for_backward(x, weight, mean, inverse, y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, y = ctx.saved_tensors
        return (*_Backward.apply(grads[0], x, weight, mean, inverse, y.detach()), None)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, grad_y: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        g = torch.ops.aten.threshold_backward(grad_y, y, 0)
        grad_x, grad_weight, grad_bias = _project(g, x, weight, mean, inverse)
        ctx.save_for_backward(g, x, weight, mean, inverse, y, grad_x, grad_weight, grad_bias)
        ctx.set_materialize_grads(False)
        return grad_x, grad_weight, grad_bias

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        v, a, b = grads
        g, x, weight, mean, inverse, y, grad_x, sum_gx, sum_g = ctx.saved_tensors
        for_weight = None
        if v is None:
            for_g = for_x = torch.zeros_like(x)
        else:
            count = x.numel() // x.shape[1]
            for_g, sum_vx, sum_v = _project(v, x, weight, mean, inverse)  # gamma r P(v)
            s = _channel_dot(g, v, mean) - (sum_v * sum_g + sum_vx * sum_gx) / count
            for_weight = inverse * s
            # The x^ term first: an affine map of x by channel, which batch norm's inference kernel does in one pass.
            slope = -weight * inverse.pow(3) * s / count
            for_x = torch.native_batch_norm(x, slope, None, mean, torch.ones_like(mean), False, 0.0, 0.0)[0]
            for_x.addcmul_(for_g, _column(-inverse * sum_gx / count, x))
            for_x.addcmul_(grad_x, _column(-inverse * sum_vx / count, x))
        if a is not None:
            for_g = torch.addcmul(for_g, (x - _column(mean, x)) * _column(inverse, x), _column(a, x))
            projected, _, _ = _project(g, x, torch.ones_like(weight), mean, inverse)  # r P(g)
            for_x = torch.addcmul(for_x, projected, _column(a, x))
        if b is not None:
            for_g = for_g + _column(b, x)
        return torch.ops.aten.threshold_backward(for_g, y, 0), for_x, for_weight, None, None, None


def _project(u: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return gamma r P(u), and by channel sum(u x^) and sum(u)."""
    projected, sum_ux, sum_u = torch.ops.aten.native_batch_norm_backward(
        u, x, weight, None, None, mean, inverse, True, 0.0, (True, True, True)
    )
    return projected, sum_ux, sum_u


def _channel_dot(u: Tensor, v: Tensor, like: Tensor) -> Tensor:
    """sum(u v) by channel, `[C]`, without a temporary: it is batch norm's gamma gradient at mean 0 and r = 1."""
    zeros = torch.zeros_like(like)
    ones = torch.ones_like(like)
    _, dot, _ = torch.ops.aten.native_batch_norm_backward(
        u, v, ones, None, None, zeros, ones, True, 0.0, (False, True, False)
    )
    result: Tensor = dot
    return result


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype)[:, None, None]  # [C, 1, 1]

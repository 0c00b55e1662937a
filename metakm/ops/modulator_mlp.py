"""The paper's kernel modulator, U2 tanh(U1 w), with first and second derivatives in closed form.

For one task, with the kernel's rows as the columns of C `[k, M]`, a cotangent G of the output, and * by element::

    H  = tanh(U1 C),  D = 1 - H*H,  Y = U2 H
    R  = U2^T G,      A = R*D
    gU2 = G H^T,      gU1 = A C^T,  gC = U1^T A

The second-order graph needs the derivatives of (gU1, gU2, gC). With their cotangents V1, V2, VC, and
B = V1 C + U1 VC and E = B*D::

    for G:   V2 H + U2 E
    for U2:  G E^T
    for C:   V1^T A + U1^T Q,   where Q = (V2^T G - 2 R*B*H)*D
    for U1:  Q C^T + A VC^T

All tasks share C: products with it are single matrix products over all tasks. Outside, Y and G may have their channels
innermost, `[T, O, k, C]` (M = O*C), as a channels-last convolution needs its kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metakm.ops.autograd import last_derivative, without_autocast
from metakm.ops.triton import has_kernels

MAX_KERNEL_PIXELS = 64  # numbers of pixels k that the GPU kernels support


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent, on a CPU in single precision as 2 sigmoid(2x) - 1: within 2e-7, four times as fast."""
    return torch.sigmoid(2 * x).mul(2).sub_(1) if _has_fast_tanh(x) else torch.tanh(x)


def two_layer_mlp(columns: Tensor, first: Tensor, second: Tensor, out_channels: int | None) -> Tensor:
    """U2 tanh(U1 C), for columns of `[k, M]` and U1, U2 of `[T, k, k]`; see `tanh`.

    Twice differentiable; a third derivative raises NotImplementedError.

    Args:
        out_channels: O of a result `[T, O, k, C]`, where M = O*C; None for one of `[T, k, M]`.
    """
    output: Tensor = _TwoLayerMLP.apply(columns, first, second, out_channels)
    return output


def mlp_gradients(grad: Tensor, columns: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of U1 and U2, `[k, k]`, for one of W~ of `[O, k, C]`, themselves differentiable."""
    _, for_first, for_second = _Backward.apply(
        grad.unsqueeze(0), columns, first.unsqueeze(0), second.unsqueeze(0), None, False
    )
    return for_first.squeeze(0), for_second.squeeze(0)


class _TwoLayerMLP(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx: Any, columns: Tensor, first: Tensor, second: Tensor, out_channels: int | None) -> Tensor:
        if _fits(columns):
            from metakm.ops.triton import modulator_mlp as kernels

            ctx.save_for_backward(columns, first, second, None)
            found = kernels.forward(columns, first, second, out_channels or 1)
            return found if out_channels else found.squeeze(1)
        hidden = _hidden(first, columns)
        ctx.save_for_backward(columns, first, second, hidden if len(first) > 1 else None)
        output = second @ hidden
        return channels_innermost(output, out_channels) if out_channels else output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        by_pixel = grad.unsqueeze(1) if grad.dim() == 3 else grad  # [T, O, k, C]
        return (*_Backward.apply(by_pixel, *ctx.saved_tensors, ctx.needs_input_grad[0]), None)


class _Backward(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(
        ctx: Any, grad: Tensor, columns: Tensor, first: Tensor, second: Tensor, hidden: Tensor | None, all_three: bool
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """(gC, gU1, gU2); gC is None where it is not asked for, because C is frozen."""
        ctx.set_materialize_grads(False)
        if _fits(columns):
            from metakm.ops.triton import modulator_mlp as kernels

            ctx.save_for_backward(grad, columns, first, second, None, None)
            return kernels.backward(grad, columns, first, second)
        hidden = _hidden(first, columns) if hidden is None else hidden
        ctx.out_channels = grad.shape[1]
        grad = grad.transpose(1, 2).flatten(2)
        r = second.mT @ grad
        a = through_tanh(r, hidden)
        ctx.save_for_backward(grad, columns, first, second, hidden, r)
        return _shared_sum(first, a) if all_three else None, _by_shared(a, columns), grad @ hidden.mT

    @staticmethod
    @without_autocast
    @last_derivative
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad, columns, first, second, hidden, r = ctx.saved_tensors
        if r is None:
            from metakm.ops.triton import modulator_mlp as kernels

            return *kernels.double_backward(grads, grad, columns, first, second), None, None
        v_columns, v_first, v_second = grads  # r, a, b, q, e: R, A, B, Q, E of the module's formulas
        v_first = torch.zeros_like(first) if v_first is None else v_first
        v_second = torch.zeros_like(second) if v_second is None else v_second
        a = through_tanh(r, hidden)
        b = _times_shared(v_first, columns)
        if v_columns is not None:
            b += _times_shared(first, v_columns)
        q = (v_second.mT @ grad).addcmul_(r * hidden, b, value=-2.0)
        q = through_tanh(q, hidden)
        e = through_tanh(b, hidden)
        for_grad = (v_second @ hidden).baddbmm_(second, e)
        for_columns = _shared_sum(v_first, a).addmm_(first.flatten(0, 1).mT, q.flatten(0, 1))
        for_first = _by_shared(q, columns)
        if v_columns is not None:
            for_first += _by_shared(a, v_columns)
        for_grad = channels_innermost(for_grad, ctx.out_channels)
        return for_grad, for_columns, for_first, grad @ e.mT, None, None


def _hidden(first: Tensor, columns: Tensor) -> Tensor:
    """H, `[T, k, M]`. With one task, as in supervised training, it is computed again rather than kept."""
    return tanh_(_times_shared(first, columns))


def _has_fast_tanh(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu"


def tanh_(x: Tensor) -> Tensor:
    """`tanh` in place, of a tensor without a gradient."""
    return x.mul_(2).sigmoid_().mul_(2).sub_(1) if _has_fast_tanh(x) else x.tanh_()


def _fits(columns: Tensor) -> bool:
    """Whether the GPU kernels support this."""
    return has_kernels(columns) and columns.dtype == torch.float32 and columns.shape[0] <= MAX_KERNEL_PIXELS


def channels_innermost(kernels: Tensor, out_channels: int) -> Tensor:
    """`[..., k, O*C]` to `[..., O, k, C]`."""
    return kernels.reshape(*kernels.shape[:-1], out_channels, -1).transpose(-3, -2).contiguous()


def _times_shared(left: Tensor, shared: Tensor) -> Tensor:
    """`[T, a, k]` @ `[k, M]` to `[T, a, M]`."""
    return (left.flatten(0, 1) @ shared).view(*left.shape[:2], -1)


def _by_shared(left: Tensor, shared: Tensor) -> Tensor:
    """`[T, a, M]` @ the transpose of `[k, M]` to `[T, a, k]`."""
    return (left.flatten(0, 1) @ shared.mT).view(*left.shape[:2], -1)


def _shared_sum(left: Tensor, right: Tensor) -> Tensor:
    """The sum over tasks of left^T right, `[T, a, k]` and `[T, a, M]` to `[k, M]`."""
    return left.flatten(0, 1).mT @ right.flatten(0, 1)


def through_tanh(grad: Tensor, hidden: Tensor) -> Tensor:
    """Multiply by D: grad * (1 - hidden^2)."""
    return torch.ops.aten.tanh_backward(grad, hidden)  # type: ignore[no-any-return]

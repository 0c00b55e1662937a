"""A 2-D convolution whose derivatives of every order are convolutions again.

Convolution is linear in its input x and in its weight w, so with an output cotangent g it defines one
trilinear form::

    F(x, w, g) = <g, x * w>

and its three partial derivatives are the three operations below::

    dF/dg = Convolve(x, w)        the convolution                     [n, O, H', W']
    dF/dx = InputGradient(g, w)   the transposed convolution          [n, C, H, W]
    dF/dw = WeightGradient(x, g)  the correlation of input and output [O, C/groups, kh, kw]

Each is bilinear in its two arguments, and its own two derivatives are the other two operations: with a
cotangent v of the input's shape, <v, InputGradient(g, w)> = F(v, w, g), and with a cotangent u of the weight's
shape, <u, WeightGradient(x, g)> = F(x, u, g). So the second-order graph of a meta-gradient consists of these
three alone, and PyTorch's generic double backward of a convolution (its issue 22577) is never reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metakm.ops import matmul_conv2d
from metakm.ops.autograd import without_autocast
from metakm.ops.triton import has_kernels


class Geometry(NamedTuple):
    """The parameters of a convolution other than its tensors."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


def convolve(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Convolve `x` `[n, C, H, W]` with `weight` `[O, C/groups, kh, kw]`; differentiable to any order."""
    output: Tensor = _Convolve.apply(x, weight, geometry)
    return output


def plain_strides(weight: Tensor, kernel_size: Sequence[int]) -> Tensor:
    """The same weight `[..., C, kh, kw]`; with 1x1 kernels, it gets the strides of a contiguous tensor.

    This needs no copy, because both have the same memory layout. With channels-last strides, the weight would turn a
    convolution of contiguous images into one in channels-last; see `_weight_gradient`.
    """
    return weight.contiguous().view(-1).view(weight.shape) if tuple(kernel_size) == (1, 1) else weight


class _Convolve(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx: Any, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        if has_kernels(x):
            from metakm.ops.triton import conv2d as kernels

            return kernels.convolution(x, weight, geometry)
        if matmul_conv2d.is_faster(x, weight.shape[1], stride=geometry.stride):
            return matmul_conv2d.convolution(x, weight, geometry)
        return torch.conv2d(x, plain_strides(weight, weight.shape[-2:]), None, *geometry)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        for_x = _InputGradient.apply(grad, weight, x.shape, ctx.geometry) if ctx.needs_input_grad[0] else None
        for_w = _WeightGradient.apply(x, grad, weight.shape, ctx.geometry) if ctx.needs_input_grad[1] else None
        return for_x, for_w, None


class _InputGradient(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx: Any, grad: Tensor, weight: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(grad, weight)
        ctx.geometry = geometry
        if has_kernels(grad):
            from metakm.ops.triton import conv2d as kernels

            return kernels.input_gradient(grad, weight, shape, geometry)
        if matmul_conv2d.is_faster(grad, weight.shape[1]):
            return matmul_conv2d.input_gradient(grad, weight, shape, geometry)
        return _input_gradient(grad, weight, shape, geometry)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, None, None]:
        (v,) = grads
        grad, weight = ctx.saved_tensors
        for_grad = _Convolve.apply(v, weight, ctx.geometry) if ctx.needs_input_grad[0] else None
        for_w = _WeightGradient.apply(v, grad, weight.shape, ctx.geometry) if ctx.needs_input_grad[1] else None
        return for_grad, for_w, None, None


class _WeightGradient(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx: Any, x: Tensor, grad: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, grad)
        ctx.geometry = geometry
        if has_kernels(x):
            from metakm.ops.triton import conv2d as kernels

            return kernels.weight_gradient(x, grad, shape, geometry)
        if matmul_conv2d.is_faster(grad, shape[1], weight_gradient=True):
            return matmul_conv2d.weight_gradient(x, grad, shape, geometry)
        return _weight_gradient(x, grad, shape, geometry)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, None, None]:
        (u,) = grads
        x, grad = ctx.saved_tensors
        for_x = _InputGradient.apply(grad, u, x.shape, ctx.geometry) if ctx.needs_input_grad[0] else None
        for_grad = _Convolve.apply(x, u, ctx.geometry) if ctx.needs_input_grad[1] else None
        return for_x, for_grad, None, None


def _unread(shape: torch.Size, like: Tensor) -> Tensor:
    """A channels-last tensor of this shape, like `like` otherwise, whose values are never read."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _input_gradient(grad: Tensor, weight: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
    return _backward(grad, _unread(shape, grad), weight, geometry, (True, False, False))[0]


def _weight_gradient(x: Tensor, grad: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
    """PyTorch's, but for strided 1x1 kernels.

    PyTorch 2.14 (tried: 2.14.1 on a CPU) writes beyond its buffers in their weight gradient in channels-last, and the
    process crashes sooner or later. So it is computed without the stride, from the pixels that the kernels read.
    """
    if is_strided_pointwise(shape[-2:], geometry.stride):
        x = _strided(x, grad.shape[-2:], geometry.stride, geometry.padding)
        geometry = geometry._replace(stride=(1, 1), padding=(0, 0))
    return _backward(grad, x, _unread(shape, grad), geometry, (False, True, False))[1]


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias, of which the wanted ones are tensors."""
    stride, padding, dilation, groups = geometry
    weight = plain_strides(weight, weight.shape[-2:])
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, (0, 0), groups, wanted
    )
    return found


def is_strided_pointwise(kernel_size: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether a convolution has 1x1 kernels that skip pixels."""
    return tuple(kernel_size) == (1, 1) and tuple(stride) != (1, 1)


def fastest_memory_format(network: nn.Module) -> torch.memory_format:
    """Channels-last, which takes a third less time on a CPU, unless PyTorch's own convolutions might crash with it.

    They may in training, see `_weight_gradient`, if a 1x1 convolution has a stride.
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    unsafe = any(is_strided_pointwise(conv.kernel_size, conv.stride) for conv in convolutions)
    return torch.contiguous_format if unsafe else torch.channels_last


def _strided(x: Tensor, size: Sequence[int], stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """The pixels `[n, C, *size]` that strided 1x1 kernels read."""
    if any(padding):
        x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    x = x[:, :, :: stride[0], :: stride[1]][:, :, : size[0], : size[1]]
    return x.contiguous(memory_format=torch.channels_last)

"""W~ of one frozen kernel on a CPU, computed block by block, so that what lies between W and W~ stays in the cache.

A pretrained network has millions of weights, and its modulators are small: each step of the formulas below takes less
time to compute than to write to memory and read again. The formulas are those of `metakm.ops.modulator_mlp`, and, for
the exact start, of `metakm.modulation.modulators.kernel`. A backward pass computes the hidden layer again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from metakm.ops.autograd import without_autocast
from metakm.ops.modulator_mlp import mlp_gradients, tanh_, through_tanh

BLOCK = 2**17  # weights in a block, for each thread


def modulate_frozen_kernel(kernel: Tensor, first: Tensor, second: Tensor, scale: Tensor | None) -> Tensor:
    """U2 tanh(U1 w), or, with a scale s, w + s (U2 tanh(U1 w/s) - tanh(w/s)), for each row w of a kernel.

    The result has the kernel's memory format. Twice differentiable with respect to U1 and U2, not to the kernel.

    Args:
        kernel: `[O, C, kh, kw]`.
        first, second: U1 and U2, `[k, k]`, where k = kh*kw.
        scale: of the exact start.
    """
    modulated: Tensor = _ModulateFrozenKernel.apply(kernel, first, second, scale)
    return modulated


class _ModulateFrozenKernel(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx: Any, kernel: Tensor, first: Tensor, second: Tensor, scale: Tensor | None) -> Tensor:
        ctx.save_for_backward(kernel, first, second, scale)
        first = first if scale is None else first / scale
        result = torch.empty_like(kernel)
        for block, columns in _blocks(kernel):
            changed = _times(second, tanh_(_times(first, columns)))
            if scale is not None:  # with U = I, both terms have the same bits, and W~ is W
                changed = torch.addcmul(columns, scale, changed.sub_(tanh_(columns * (1 / scale))))
            part = result[block]
            part.copy_(changed.view(*part.shape[2:], *part.shape[:2]).permute(2, 3, 0, 1))
        return result

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        kernel, first, second, scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradients are differentiated in turn
            grad, inner = (grad, first) if scale is None else (grad * scale, first / scale)
            for_first, for_second = mlp_gradients(grad.flatten(2).mT, _columns(kernel), inner, second)
            return None, for_first if scale is None else for_first / scale, for_second, None
        inner = first if scale is None else first / scale
        for_first, for_second = torch.zeros_like(first), torch.zeros_like(second)
        for block, columns in _blocks(kernel):
            grad_columns = _columns(grad[block])
            hidden = tanh_(_times(inner, columns))
            for_second += _products(grad_columns, hidden)
            for_first += _products(through_tanh(_times(second.mT, grad_columns), hidden), columns)
        return None, for_first, for_second if scale is None else for_second * scale, None


def _blocks(kernel: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Ranges of output channels, with their kernels as columns."""
    channels = max(1, BLOCK * torch.get_num_threads() // kernel[0].numel())
    for start in range(0, len(kernel), channels):
        block = slice(start, start + channels)
        yield block, _columns(kernel[block])


def _columns(kernel: Tensor) -> Tensor:
    """`[O, C, kh, kw]` as `[k, O*C]`."""
    return kernel.flatten(2).movedim(2, 0).flatten(1).contiguous()


def _times(left: Tensor, columns: Tensor) -> Tensor:
    return left @ columns if len(left) > 1 else left * columns


def _products(left: Tensor, right: Tensor) -> Tensor:
    """The product of one and the transpose of the other, both `[k, M]`."""
    return left @ right.mT if len(left) > 1 else torch.dot(left[0], right[0])

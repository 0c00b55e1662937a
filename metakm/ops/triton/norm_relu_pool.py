"""Batch norm, pooling and ReLU on a GPU, as in `metakm.ops.norm_relu_pool`, with two launches per derivative."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from metakm.ops.triton import norm_relu_pool_kernels as kernels
from metakm.ops.triton.launch import NUM_SMS, channels_last, launch

BLOCK_ROWS = 16


class Forward(NamedTuple):
    """What the derivatives need: pooled y, mean and r by channel, and uint8 `pool_indices` (None: no pooling)."""

    y: Tensor
    mean: Tensor
    inverse: Tensor
    pool_indices: Tensor | None


class _Plan:
    """How the kernels divide `x` `[n, C, H, W]` among programs."""

    def __init__(self, x: Tensor, pool: bool) -> None:
        self.pool = pool
        n, self.channels, height, width = x.shape
        self.rows = n * height * width
        high, wide = (height // 2, width // 2) if pool else (height, width)
        self.y_shape = (n, high, wide, self.channels)
        self.outputs = n * high * wide
        self.cells = n * ((height + 1) // 2) * ((width + 1) // 2) if pool else self.rows
        self.sizes = (height, width, high, wide, self.channels)
        self.block = min(64, triton.next_power_of_2(self.channels))
        self.blocks = triton.cdiv(self.channels, self.block)

    def divided(self, total: int) -> tuple[int, int]:
        """The number of partial sums for `total` rows, and the rows in each."""
        parts = max(1, min(2 * NUM_SMS // self.blocks, 64, triton.cdiv(total, BLOCK_ROWS)))
        each = triton.cdiv(triton.cdiv(total, parts), BLOCK_ROWS) * BLOCK_ROWS
        return triton.cdiv(total, each), each

    def grid(self, total: int) -> tuple[int, int]:
        """Programs that cover `total` rows or windows, and all channels."""
        return triton.cdiv(total, BLOCK_ROWS), self.blocks

    def blocking(self, parts: int) -> dict[str, int]:
        """Constants of the kernels that add up partial sums."""
        return {"PARTS": triton.next_power_of_2(parts), "BLOCK_R": BLOCK_ROWS, "BLOCK_C": self.block}


def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, pool: bool) -> Forward:
    """Normalise, optionally pool, and rectify; `x` is channels-last.

    Raises:
        ValueError: affine parameters of another size than the channels, or images without a window.
    """
    plan = _Plan(x, pool)
    if not weight.numel() == bias.numel() == plan.channels or plan.outputs < 1:
        raise ValueError(
            f"Expected a window and as many affine parameters as channels, got x {list(x.shape)}, weight "
            f"{list(weight.shape)} and bias {list(bias.shape)}"
        )
    n_parts, each = plan.divided(plan.rows)
    parts = _by_channel(x, 2 * n_parts)
    launch(
        kernels.sum_kernel, (n_parts, plan.blocks),
        x, parts, plan.rows, plan.channels, each, n_parts, BLOCK_R=BLOCK_ROWS, BLOCK_C=plan.block,
    )  # fmt: skip
    y = torch.empty(plan.y_shape, dtype=x.dtype, device=x.device)
    pool_indices = torch.empty_like(y, dtype=torch.uint8) if pool else None
    mean, inverse = _by_channel(x, 2)
    launch(
        kernels.forward_kernel, plan.grid(plan.outputs),
        x, weight.contiguous(), bias.contiguous(), parts, y, y if pool_indices is None else pool_indices, mean, inverse,
        plan.outputs, *plan.sizes, plan.rows, n_parts, eps, POOL=pool, **plan.blocking(n_parts),
    )  # fmt: skip
    return Forward(y.permute(0, 3, 1, 2), mean, inverse, pool_indices)


def backward(grad: Tensor, x: Tensor, weight: Tensor, saved: Forward) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, gamma and beta."""
    plan, per_window = _Plan(x, saved.pool_indices is not None), _per_window(grad, saved)
    parts, n_parts = _reduced(plan, None, x, per_window, saved)
    grad_x = torch.empty_like(x)
    sum_gx, sum_g = _by_channel(x, 2)
    launch(
        kernels.backward_kernel, plan.grid(plan.cells),
        x, *per_window, weight.contiguous(), saved.mean, saved.inverse, parts, grad_x, sum_gx, sum_g,
        plan.cells, *plan.sizes, plan.rows, n_parts, POOL=plan.pool, **plan.blocking(n_parts),
    )  # fmt: skip
    return grad_x, sum_gx, sum_g


def double_backward(
    cotangents: tuple[Tensor | None, Tensor | None, Tensor | None],
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Forward,
    sums: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """What `cotangents` of `backward`'s three results give for grad, x and gamma; `sums` are its last two."""
    v, a, b = cotangents
    v = torch.zeros_like(x) if v is None else channels_last(v)
    plan, per_window = _Plan(x, saved.pool_indices is not None), _per_window(grad, saved)
    parts, n_parts = _reduced(plan, v, x, per_window, saved)
    for_g, for_x, for_weight = torch.empty_like(saved.y), torch.empty_like(x), torch.empty_like(saved.mean)
    launch(
        kernels.second_kernel, plan.grid(plan.cells),
        v, saved.mean if a is None else a.contiguous(), saved.mean if b is None else b.contiguous(), x, *per_window,
        weight.contiguous(), saved.mean, saved.inverse, *sums, parts, for_g, for_x, for_weight,
        plan.cells, *plan.sizes, plan.rows, n_parts,
        WITH_A=a is not None, WITH_B=b is not None, POOL=plan.pool, **plan.blocking(n_parts),
    )  # fmt: skip
    return for_g, for_x, for_weight


def _per_window(grad: Tensor, saved: Forward) -> tuple[Tensor, Tensor, Tensor]:
    """What the kernels read of each window; without pooling there are no indices to read."""
    return channels_last(grad), saved.y, saved.y if saved.pool_indices is None else saved.pool_indices


def _reduced(
    plan: _Plan, v: Tensor | None, x: Tensor, per_window: tuple[Tensor, Tensor, Tensor], saved: Forward
) -> tuple[Tensor, int]:
    """The partial sums per channel of the first derivative, or with `v` of the second, and their number."""
    n_parts, each = plan.divided(plan.cells)
    parts = _by_channel(x, (2 if v is None else 3) * n_parts)
    launch(
        kernels.reduce_kernel, (n_parts, plan.blocks),
        x if v is None else v, x, *per_window, saved.mean, saved.inverse, parts, plan.cells, *plan.sizes, each, n_parts,
        SECOND=v is not None, POOL=plan.pool, BLOCK_R=BLOCK_ROWS, BLOCK_C=plan.block,
    )  # fmt: skip
    return parts, n_parts


def _by_channel(x: Tensor, rows: int) -> Tensor:
    """A buffer of float32 numbers per channel, `[rows, C]`."""
    return torch.empty(rows, x.shape[1], dtype=torch.float32, device=x.device)

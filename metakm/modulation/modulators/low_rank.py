"""Low-rank adaptation of convolutions (Hu et al., "LoRA", 2022), as a modulator to compare with.

With W read as a matrix of O rows and C k_h k_w columns::

    W~ = W + B A,    A of r rows, from a uniform distribution, B of r columns, zero at the start

which is peft's LoRA on a convolution with lora_alpha = r.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from metakm.modulation.modulators.registry import register_modulator

RANK = 4


@register_modulator("low-rank")
class LowRank(nn.Module):
    """LoRA on convolutions: the pair (A, B) of one layer.

    Args:
        rows, columns: of W read as a matrix.
        rank: r, at most the smaller of both.
    """

    def __init__(self, rows: int, columns: int, rank: int = RANK) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, columns))  # A
        self.up = nn.Parameter(torch.zeros(rows, rank))  # B
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    @classmethod
    def for_weight(cls, weight: Tensor) -> LowRank:
        """The pair for a convolution's weight `[O, C / groups, kh, kw]`."""
        rows, columns = weight.shape[0], weight[0].numel()
        return cls(rows, columns, min(RANK, rows, columns))

    def forward(self, kernel: Tensor) -> Tensor:
        """W~ of `[O, C / groups, kh, kw]`, in the memory format of W; differentiable with respect to W, A and B."""
        return kernel + (self.up @ self.down).view(kernel.shape)

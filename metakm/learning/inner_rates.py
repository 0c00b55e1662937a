"""Learnable inner learning rates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metakm.config import RunConfig
from metakm.strategies import Strategy


class InnerRates(nn.Module):
    """One rate for each adapted tensor, `[]`, or with `inner_lr_per_step` one for each inner step too, `[inner_steps]`.

    The latter are MAML++'s (Antoniou, Edwards & Storkey 2019, Sec. 4, "LSLR"). All start at `config.inner_lr`; that of
    the head's weight in the first step starts at `config.shared.first_head_lr` where this is not 0.
    """

    def __init__(self, strategy: Strategy, config: RunConfig) -> None:
        super().__init__()
        shape = (config.inner_steps,) if config.shared.inner_lr_per_step else ()
        head = None if strategy.head_prefix is None else f"{strategy.head_prefix}weight"
        self.rates = nn.ParameterList(
            nn.Parameter(_start(p, shape, config, is_head=name == head))
            for name, p in strategy.adapted.named_parameters()
        )


def _start(parameter: Tensor, shape: tuple[int, ...], config: RunConfig, is_head: bool) -> Tensor:
    rates = torch.full(shape, config.inner_lr, dtype=parameter.dtype)
    if is_head and config.shared.first_head_lr:
        rates[0] = config.shared.first_head_lr
    return rates

"""Learnable inner learning rates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metakm.options import SharedOptions
from metakm.strategies import Strategy


def learned_rates(strategy: Strategy, options: SharedOptions, inner_lr: float, inner_steps: int) -> nn.ParameterList:
    """One rate for each adapted tensor, `[]`, or with `inner_lr_per_step` one for each inner step too, `[inner_steps]`.

    The latter are MAML++'s (Antoniou, Edwards & Storkey 2019, Sec. 4, "LSLR"). All start at `inner_lr`; that of the
    head's weight in the first step starts at `options.first_head_lr` where this is not 0. Empty without
    `options.learn_inner_lr`.
    """
    if not options.learn_inner_lr:
        return nn.ParameterList()
    shape = (inner_steps,) if options.inner_lr_per_step else ()
    head = None if strategy.head_prefix is None else f"{strategy.head_prefix}weight"

    def start(parameter: Tensor, is_head: bool) -> Tensor:
        rates = torch.full(shape, inner_lr, dtype=parameter.dtype, device=parameter.device)
        if is_head and options.first_head_lr:
            rates[0] = options.first_head_lr
        return rates

    return nn.ParameterList(
        nn.Parameter(start(parameter, name == head)) for name, parameter in strategy.adapted.named_parameters()
    )

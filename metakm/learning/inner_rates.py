"""Inner learning rates: one for each adapted tensor, fixed or learned."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from metakm.errors import UserError
from metakm.options import SharedOptions
from metakm.strategies import Strategy
from metakm.strategies.interfaces import InnerLR


def learned_rates(strategy: Strategy, options: SharedOptions, inner_lr: float, inner_steps: int) -> nn.ParameterList:
    """One rate for each adapted tensor, `[]`, or with `inner_lr_per_step` one for each inner step too, `[inner_steps]`.

    The latter are MAML++'s (Antoniou, Edwards & Storkey 2019, Sec. 4, "LSLR"). All start at `inner_lr`; that of the
    head's weight in the first step starts at `options.first_head_lr` where this is not 0. Empty without
    `options.learn_inner_lr`.

    Raises:
        UserError: a rate that is not a number above 0, or inner steps that are not a whole number.
    """
    if not (math.isfinite(inner_lr) and inner_lr > 0):
        raise UserError(f"Expected inner_lr to be a positive number, got {inner_lr}")
    if not hasattr(inner_steps, "__index__") or inner_steps < 0:
        raise UserError(f"Expected inner_steps to be a whole number, got {inner_steps!r}")
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


def head_rates(strategy: Strategy, inner_lr: InnerLR) -> list[Tensor]:
    """The same rates for the head, and 0 for all else that the inner loop adapts.

    Raises:
        UserError: a strategy whose inner loop adapts no head.
    """
    head = {id(parameter) for parameter in strategy.head_parameters().values()}
    if not head:
        raise UserError(
            f"Expected a strategy whose inner loop adapts a head, got {type(strategy).__qualname__}; "
            "test it with all that it adapts"
        )
    parameters = list(strategy.adapted.parameters())
    rates = one_rate_each(inner_lr, len(parameters))
    return [
        p.new_tensor(0.0) if id(p) not in head else torch.as_tensor(r).to(p)
        for p, r in zip(parameters, rates, strict=True)
    ]


def one_rate_each(inner_lr: InnerLR, count: int) -> list[float | Tensor]:
    """A rate for each of `count` adapted parameters.

    Raises:
        UserError: rates of another number, or of shapes other than `[]` and `[steps]`.
    """
    if isinstance(inner_lr, int | float | np.number):
        return [float(inner_lr)] * count
    if isinstance(inner_lr, Tensor) and inner_lr.dim() == 0:
        return [inner_lr] * count
    if len(inner_lr) != count:
        raise UserError(
            f"Expected one inner learning rate, or {count}, one for each adapted parameter; got {len(inner_lr)}"
        )
    rates = [rate if isinstance(rate, Tensor) else float(rate) for rate in inner_lr]
    for rate in rates:
        if isinstance(rate, Tensor) and (rate.dim() > 1 or rate.numel() == 0):
            raise UserError(f"Expected inner learning rates of shape [] or [steps], got {list(rate.shape)}")
    return rates


def copied(inner_lr: InnerLR) -> InnerLR:
    """The same rates, which no further training changes."""
    if isinstance(inner_lr, int | float | np.number):
        return inner_lr
    if isinstance(inner_lr, Tensor):
        return inner_lr.detach().clone()
    return [rate.detach().clone() if isinstance(rate, Tensor) else rate for rate in inner_lr]


def rates_by_step(rate: float | Tensor) -> Sequence[float | Tensor]:
    """The rates of the first steps; the last is also that of all further ones."""
    return rate.unbind() if isinstance(rate, Tensor) and rate.dim() else (rate,)

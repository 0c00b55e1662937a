"""Where the linear head of a strategy starts."""

from __future__ import annotations

from torch import nn

from metakm.errors import UserError
from metakm.options import SharedOptions
from metakm.strategies import Strategy


def start_head(strategy: Strategy, options: SharedOptions) -> None:
    """Give the head the start that `zero_head` or `normal_head` ask for.

    Raises:
        UserError: an option of the head, `first_head_lr` included, for a strategy that names none.
    """
    head = strategy.head_parameters()
    for name in ("first_head_lr", "normal_head", "zero_head"):
        if getattr(options, name) and not head:
            raise UserError(
                f"Expected {type(strategy).__qualname__}.head_prefix to name a head in `adapted` for {name}, got "
                f"{strategy.head_prefix!r}; set it, or register the strategy with options that have no {name}"
            )
    if options.zero_head or options.normal_head:
        for parameter in head.values():
            nn.init.zeros_(parameter)
    if options.normal_head:
        nn.init.normal_(head[f"{strategy.head_prefix}weight"])

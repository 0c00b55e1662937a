"""Meta-SGD: MAML with a learned inner rate for every weight (Li et al. 2017, "Meta-SGD", Eq. 1 and 2).

    theta' = theta - a o grad_theta L_support(theta),    a = alpha r,    theta and r learned by the outer loop

o is the element-wise product; alpha is the run's inner learning rate and r starts at 1, so that every rate starts at
alpha, and an optimiser that normalises its steps, such as Adam, changes the rates relative to alpha, whatever its size.
The paper takes one inner step; here a run takes as many as it is told, with the same rates in each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metakm.options import GradientOptions, NormOptions
from metakm.strategies.interfaces import InnerLoop
from metakm.strategies.maml import MAML
from metakm.strategies.registry import register_strategy


@dataclass(frozen=True, kw_only=True)
class MetaSGDOptions(GradientOptions, NormOptions):
    """Options of Meta-SGD, which learns its own rates."""


@register_strategy("meta-sgd", options=MetaSGDOptions)
class MetaSGD(MAML):
    """Meta-SGD (Li et al. 2017): as MAML; `rates` has a factor on the inner rate for each weight."""

    def __init__(self, backbone: nn.Module, ways: int, implicit: bool = False) -> None:
        super().__init__(backbone, ways, implicit)
        self.rates = nn.ParameterDict({name: torch.ones_like(p) for name, p in self.adapted.named_parameters()})

    def adapt(self, inner: InnerLoop, encoded: Tensor, labels: Tensor) -> nn.Module:
        """See `Strategy`."""
        factors = [self.rates[name] for name, _ in self.adapted.named_parameters()]
        return inner.descend((encoded, labels), factors=factors)

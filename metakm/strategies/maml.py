"""MAML: adapt the whole network (Finn, Abbeel & Levine 2017, "Model-Agnostic Meta-Learning", Algorithm 2).

    theta' = theta - alpha * grad_theta L_support(theta),    theta = {convolutions, head}

As in MAML's own code, the affine parameters of the norm layers are only learned by the outer loop; `implicit=True`
adapts them, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from metakm.options import HeadOptions, NormOptions
from metakm.strategies.network import is_norm_affine
from metakm.strategies.parameter_subset import DirectStrategy
from metakm.strategies.registry import register_strategy


@dataclass(frozen=True, kw_only=True)
class MAMLOptions(HeadOptions, NormOptions):
    """Options of MAML."""


@register_strategy("maml", options=MAMLOptions)
class MAML(DirectStrategy):
    """MAML (Finn et al. 2017): adapts the network; the norms' scales and shifts only with `implicit`."""

    head_prefix: ClassVar[str | None] = "head__"

    def __init__(self, backbone: nn.Module, ways: int, implicit: bool = False) -> None:
        super().__init__(backbone, ways, lambda network, name: implicit or not is_norm_affine(network, name))

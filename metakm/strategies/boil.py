"""BOIL: adapt the body, keep the head (Oh et al. 2021, "BOIL: Towards Representation Change for Few-shot Learning").

    theta_body' = theta_body - alpha * grad_theta_body L_support(theta_body, theta_head),    theta_head' = theta_head

The opposite of ANIL: the head's inner learning rate is zero, and the outer loop learns it with everything else. As in
our MAML, the affine parameters of the norm layers belong to the adapted body only with `implicit=True`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from metakm.options import NormOptions, RateOptions
from metakm.strategies.network import Classifier, is_norm_affine
from metakm.strategies.parameter_subset import DirectStrategy
from metakm.strategies.registry import register_strategy


@dataclass(frozen=True, kw_only=True)
class BOILOptions(RateOptions, NormOptions):
    """Options of BOIL."""


@register_strategy("boil", options=BOILOptions)
class BOIL(DirectStrategy):
    """BOIL (Oh et al. 2021): adapts the backbone, its norm affine only with `implicit`."""

    def __init__(self, backbone: nn.Module, ways: int, implicit: bool = False) -> None:
        def chosen(network: nn.Module, name: str) -> bool:
            return name.startswith(Classifier.BACKBONE) and (implicit or not is_norm_affine(network, name))

        super().__init__(backbone, ways, chosen)

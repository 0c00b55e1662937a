"""Heads that start from the support prototypes (Triantafillou et al. 2020, "Meta-Dataset", Sec. 3, Proto-MAML).

    c_k = mean of f(x) over the support images x of class k,    f = the features before adaptation
    head of class k at the start of the inner loop: weight 2 s c_k, bias -s |c_k|^2

So before the first inner step, predictions are those of a prototypical network (its logits without s |f(x)|^2, which is
the same for every class). s = min(1, 8/F) is that of `protonet`, whose module explains it; in the paper it is 1. The
inner loop then adapts the same parameters as in `maml`, `anil` and `km`, including the head. The meta-gradient also
reaches the features through the prototypes, even to first order. The values of the head's own parameters are never
used: they only say which tensors the inner loop adapts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from metakm.modulation.modulators import Activation, Initialisation, Start
from metakm.options import NormOptions, PrototypeOptions, RateOptions
from metakm.strategies.anil import ANIL
from metakm.strategies.interfaces import InnerLoop
from metakm.strategies.km import KM, ModulatorOptions
from metakm.strategies.maml import MAML
from metakm.strategies.network import Classifier, call_with
from metakm.strategies.protonet import Prototypical, prototypes
from metakm.strategies.registry import register_strategy


@dataclass(frozen=True, kw_only=True)
class PrototypeHeadOptions(RateOptions, PrototypeOptions):
    """Options of strategies whose head starts from prototypes, not from parameters of its own."""


@dataclass(frozen=True, kw_only=True)
class ProtoMAMLOptions(PrototypeHeadOptions, NormOptions):
    """Options of Proto-MAML."""


@dataclass(frozen=True, kw_only=True)
class ProtoKMOptions(PrototypeHeadOptions, ModulatorOptions):
    """Options of KM with such a head."""

    algo: ClassVar[str] = "km-proto"


class PrototypeHead(Prototypical):
    """Mixin for a strategy with a linear head in `adapted`, see `head_prefix`."""

    def features(self, encoded: Tensor) -> Tensor:
        """Features `[T, n, F]` before adaptation, of what `encode` returned."""
        raise NotImplementedError

    def adapt(self, inner: InnerLoop, encoded: Tensor, labels: Tensor) -> Any:
        """See `Strategy`. The support labels may have any number of classes."""
        features = self.features(encoded).to(next(self.adapted.parameters()).dtype)
        means = prototypes(features, labels)  # [T, N, F]
        s = self.distance_scale(means.shape[-1])
        start = {f"{self.head_prefix}weight": 2 * s * means, f"{self.head_prefix}bias": -s * means.square().sum(-1)}
        return inner.descend((encoded, labels), start=start)

    def forward(self, images: Tensor) -> Tensor:
        """Features `[T, n, F]`: without a support set there are no logits."""
        return self.features(self.encode(images))


@register_strategy("maml-proto", options=ProtoMAMLOptions)
class ProtoMAML(PrototypeHead, MAML):
    """Proto-MAML (Triantafillou et al. 2020): MAML with a head that starts from prototypes."""

    def __init__(self, backbone: nn.Module, ways: int, implicit: bool = False, scaled_distance: bool = False) -> None:
        super().__init__(backbone, ways, implicit)
        self.scaled_distance = scaled_distance

    def features(self, encoded: Tensor) -> Tensor:
        """See `PrototypeHead`."""
        features: Tensor = self.network.backbone(encoded)
        return features


@register_strategy("anil-proto", options=PrototypeHeadOptions)
class ProtoANIL(PrototypeHead, ANIL):
    """ANIL with a head that starts from prototypes."""

    def __init__(self, backbone: nn.Module, ways: int, scaled_distance: bool = False) -> None:
        super().__init__(backbone, ways)
        self.scaled_distance = scaled_distance

    def features(self, encoded: Tensor) -> Tensor:
        """See `PrototypeHead`."""
        return encoded


@register_strategy("km-proto", options=ProtoKMOptions)
class ProtoKM(PrototypeHead, KM):
    """KM with a head that starts from prototypes of the features under the initial modulators."""

    def __init__(
        self,
        backbone: nn.Module,
        ways: int,
        implicit: bool = False,
        depth: int = 2,
        activation: Activation = "tanh",
        init: Initialisation = "identity",
        start: Start = "paper",
        scaled_distance: bool = False,
    ) -> None:
        super().__init__(backbone, ways, implicit, depth, activation, init, start)
        self.scaled_distance = scaled_distance

    def features(self, encoded: Tensor) -> Tensor:
        """See `PrototypeHead`."""
        names = Classifier.BACKBONE
        start = self.adapted(self.kernels())
        return call_with(
            self.network.backbone, {k.removeprefix(names): v for k, v in start.items() if k.startswith(names)}, encoded
        )

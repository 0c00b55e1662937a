"""What a fit trains of a pretrained network, by name.

All are `modulate` with other arguments, so that each leaves a task pack. Batch norm keeps the base's statistics: those
of a few photos are worse than those of the millions that the base has seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from torch import nn

from metakm.learning.randomness import seeded
from metakm.modulation.attachment import modulate
from metakm.modulation.modulators.low_rank import LowRank
from metakm.ops.conv2d import fastest_memory_format

MethodName = Literal["km", "both", "norm", "head", "centroid", "ridge", "lora", "full"]
CLOSED_FORM: frozenset[MethodName] = frozenset({"head", "centroid", "ridge"})
"""Leave the network as it is; their classifiers are solved for."""


class Method(NamedTuple):
    """One way to adapt a network.

    Attributes:
        rate: AdamW's highest learning rate of all but the norms and the head, which has a rate of its own.
        norm_rate: that of the norms.
        attach: freezes the rest of a network, whose classifier has the name given.
    """

    rate: float
    norm_rate: float
    attach: Callable[[nn.Module, str], nn.Module]


def _modulated(**arguments: Any) -> Callable[[nn.Module, str], nn.Module]:
    def attach(network: nn.Module, classifier: str) -> nn.Module:
        return modulate(network, classifier=classifier, statistics="base", **arguments)

    return attach


def _whole(network: nn.Module, _: str) -> nn.Module:
    return modulate(network, layers=(), classifier="", statistics="base")


METHODS: dict[MethodName, Method] = {
    "km": Method(2e-4, 0.0, _modulated(implicit=False)),
    "both": Method(5e-5, 2e-3, _modulated()),
    "norm": Method(0.0, 2e-3, _modulated(layers=())),
    "head": Method(0.0, 0.0, _modulated(layers=(), implicit=False)),
    "centroid": Method(0.0, 0.0, _modulated(layers=(), implicit=False)),
    "ridge": Method(0.0, 0.0, _modulated(layers=(), implicit=False)),
    "lora": Method(3e-4, 0.0, _modulated(implicit=False, modulator=LowRank)),
    "full": Method(1e-4, 1e-3, _whole),
}


def attach(network: nn.Module, classifier: str, method: MethodName, seed: int = 0) -> nn.Module:
    """Make `network` trainable as the method says; changes and returns it. Random initial values are the seed's."""
    with seeded(seed):
        return METHODS[method].attach(network, classifier)


def faster_layout(network: nn.Module) -> nn.Module:
    """Put the weights in the memory format that is fastest; returns the network."""
    return network.to(memory_format=fastest_memory_format(network))

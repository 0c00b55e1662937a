"""The common part of strategies that adapt parameters of the network itself and differ in which ones."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from metakm.strategies.base import Strategy
from metakm.strategies.network import Classifier, SharedParameters, call_with


class DirectStrategy(Strategy):
    """`adapted` = chosen parameters of a classifier.

    Args:
        chosen: called with the classifier and the name of one of its parameters (`backbone.*`, `head.weight`,
            `head.bias`): whether the inner loop adapts it.
    """

    def __init__(self, backbone: nn.Module, ways: int, chosen: Callable[[nn.Module, str], bool]) -> None:
        super().__init__()
        self.network = Classifier(backbone, ways)
        names = [name for name, _ in self.network.named_parameters()]
        self.adapted = SharedParameters(self.network, [name for name in names if chosen(self.network, name)])

    def predict(self, adapted: nn.Module, encoded: Tensor) -> Tensor:
        """See `Strategy`."""
        return call_with(self.network, adapted(), encoded)

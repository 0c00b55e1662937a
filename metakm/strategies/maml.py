"""MAML: adapt the whole network (Finn, Abbeel & Levine 2017, "Model-Agnostic Meta-Learning", Algorithm 2).

    theta' = theta - alpha * grad_theta L_support(theta),    theta = {convolutions, classifier}

As in MAML's own code, the affine parameters of the norm layers are learned by the outer loop alone; `implicit=True`
adapts them too.
"""

from __future__ import annotations

from torch import Tensor, nn

from metakm.strategies.base import Classifier, SharedParameters, Strategy, call_with, is_norm_affine
from metakm.strategies.registry import register_strategy


@register_strategy("maml")
class MAML(Strategy):
    """`adapted` = the network, its norm affine only with `implicit`."""

    def __init__(self, backbone: nn.Module, ways: int, implicit: bool = False) -> None:
        super().__init__()
        self.network = Classifier(backbone, ways)
        names = [name for name, _ in self.network.named_parameters()]
        self.adapted = SharedParameters(
            self.network, [name for name in names if implicit or not is_norm_affine(self.network, name)]
        )

    def predict(self, adapted: nn.Module, encoded: Tensor) -> Tensor:
        """See `Strategy`."""
        return call_with(self.network, adapted(), encoded)

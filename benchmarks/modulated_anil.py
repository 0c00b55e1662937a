"""A control for KM, as a plugin: ANIL on kernels W~ = g(W; U), where the outer loop trains W and U.

    python -m metakm.run --plugin benchmarks/modulated_anil.py --algo modulated-anil --preset table3 --dataset omniglot

KM differs from ANIL in two ways: the outer loop trains the network through the modulators, and the inner loop adapts
them and the convolution biases. Here only the first is left: the inner loop adapts the head alone, as ANIL's does. So
KM minus this shows what adapting the modulators contributes, in training and at the test, and this minus ANIL what
training through them does.
"""

from __future__ import annotations

from torch import Tensor, nn

from metakm.modulation import KernelModulators
from metakm.options import HeadOptions
from metakm.strategies.anil import ANIL
from metakm.strategies.km import KMOptions
from metakm.strategies.network import call_with
from metakm.strategies.registry import register_strategy


@register_strategy("modulated-anil", options=HeadOptions)
class ModulatedANIL(ANIL):
    """ANIL on kernels that are modulated as KM's are by default."""

    def __init__(self, backbone: nn.Module, ways: int) -> None:
        super().__init__(backbone, ways)
        default = KMOptions()
        self.modulators = KernelModulators(backbone, default.depth, default.activation, default.init, default.start)

    def encode(self, images: Tensor) -> Tensor:
        """Features `[T, n, F]` of the backbone with W~ in place of W."""
        kernels = {name: self.backbone.get_parameter(name) for name in self.modulators.weight_names}
        return call_with(self.backbone, self.modulators(kernels), images)

"""KM: adapt kernel modulators and the head (Hu & Liu, "Kernel Modulation", Sec. III-A and IV-C).

    W~ = g(W; U)    (Eq. 3, every convolution layer, every task)
    phi' = phi - alpha * grad_phi L_support(f(.; W~)),    phi = {U, convolution biases, head}

The kernels W are frozen in the inner loop and learned by the outer loop. The convolution biases are adapted because
the paper's count includes them (2,204 adapted parameters against MAML's 112,724, "51X"). `implicit=True` adds the
affine parameters of the norm layers (Sec. III-B), which the meta-learning experiments leave to the outer loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from metakm.fields import require
from metakm.modulation import KernelModulators
from metakm.modulation.modulators import Activation, Initialisation, Start
from metakm.options import HeadOptions, NormOptions
from metakm.strategies.base import Strategy
from metakm.strategies.network import Classifier, SharedParameters, call_with, is_norm_affine
from metakm.strategies.registry import register_strategy


class Modulation(nn.Module):
    """U, the convolution biases, the head and, with `implicit`, the norm affine of one network."""

    def __init__(self, modulators: KernelModulators, direct: SharedParameters) -> None:
        super().__init__()
        self.modulators = modulators
        self.direct = direct

    def forward(self, kernels: dict[str, Tensor]) -> dict[str, Tensor]:
        """All parameters of the network that adaptation changes, including W~ for each kernel W in `kernels`."""
        return {**self.modulators(kernels), **self.direct()}

    @classmethod
    def from_network(
        cls,
        network: nn.Module,
        implicit: bool,
        depth: int,
        activation: Activation,
        init: Initialisation,
        start: Start = "paper",
        head: str = "",
    ) -> Modulation:
        """New modulators; and biases of the modulated convolutions, the head and, with `implicit`, norm affine.

        Args:
            head: prefix of the head's names. The network's other layers, such as `nn.Linear` within a backbone, do not
                adapt. Empty where the head is not known: then all parameters do but kernels and norm affine.

        Raises:
            UserError: see `KernelModulators`.
        """
        modulators = KernelModulators(network, depth, activation, init, start)
        kernels = modulators.weight_names
        biases = {f"{name.removesuffix('weight')}bias" for name in kernels}
        direct = [
            name
            for name, _ in network.named_parameters()
            if (implicit if is_norm_affine(network, name) else name in biases or name.startswith(head))
            and name not in kernels
        ]
        return cls(modulators, SharedParameters(network, direct))


@dataclass(frozen=True, kw_only=True)
class ModulatorOptions(NormOptions):
    """Options of each `KernelModulator`."""

    algo: ClassVar[str] = "km"

    depth: int = 2
    """Layers of each kernel modulator. 2 as published."""
    activation: Activation = "tanh"
    """Activation between its layers (Sec. IV-D). tanh as published."""
    init: Initialisation = "identity"
    """How its layers start (Eq. 4; Sec. IV-D b): identity, as published, is I + N(0, 0.001)."""
    start: Start = "paper"
    """paper, as published, for a backbone with random weights; exact for a trained one, which then starts unchanged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.depth >= 1, f"{self.algo}.depth", "at least 1", self.depth)


@dataclass(frozen=True, kw_only=True)
class KMOptions(HeadOptions, ModulatorOptions):
    """Options of KM."""


@register_strategy("km", options=KMOptions)
class KM(Strategy):
    """KM (Hu & Liu): adapts kernel modulators, convolution biases and head.

    Args:
        implicit: adapt the norm affine, too.
        depth, activation, init: of each `KernelModulator`.
        start: `paper`, as published, for a backbone with random weights; `exact` for a trained one, whose kernels
            tanh would change (see `metakm.modulation.modulators`).
    """

    head_prefix: ClassVar[str | None] = "direct.head__"

    def __init__(
        self,
        backbone: nn.Module,
        ways: int,
        implicit: bool = False,
        depth: int = 2,
        activation: Activation = "tanh",
        init: Initialisation = "identity",
        start: Start = "paper",
    ) -> None:
        super().__init__()
        self.network = Classifier(backbone, ways)
        self.adapted = Modulation.from_network(
            self.network, implicit, depth, activation, init, start, head=Classifier.HEAD
        )
        self.kernel_names = self.adapted.modulators.weight_names

    def predict(self, adapted: nn.Module, encoded: Tensor) -> Tensor:
        """See `Strategy`."""
        return call_with(self.network, adapted(self.kernels()), encoded)  # W~: [T, O, C, kh, kw]

    def kernels(self) -> dict[str, Tensor]:
        """W, `[O, C, kh, kw]` each, by the network's names."""
        return {name: self.network.get_parameter(name) for name in self.kernel_names}

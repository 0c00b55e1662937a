"""CAVIA: adapt a vector of context parameters alone (Zintgraf et al. 2019, "Fast Context Adaptation ...", Sec. 3).

    phi_0 = 0,    phi <- phi - alpha grad_phi L_support(f(.; phi, theta))    (the context, in every task)
    h' = gamma h + beta,    (gamma, beta) = A phi + a    (FiLM: Perez et al. 2018, for each channel of a convolution)

Only the outer loop learns theta = {the network, with its head, and every A and a}. FiLM follows the batch norm of
a convolution, as in the authors' code. There it is one affine map with the norm's own, with the scale gamma w and the
shift gamma b + beta for the norm's w and b; so any backbone with affine norms will do.

Deviations: a starts at gamma = 1 and beta = 0, where the network is the unmodulated one; the authors draw it near 0. By
default every norm is modulated, with the same context; the authors modulate the third convolution of four alone, which
is `--cavia.layer 3`. With a negative gamma, max-pooling after FiLM differs from the authors', who pool before it.
On mini-ImageNet they take 2 inner steps, in training and at the test, and clip each entry of the meta-gradient to +-10
(`--grad-clip 10`, which `quick` has).

The inner rate that presets have for other strategies is too small for it: with `quick`'s 0.5 it stayed at chance for
87 iterations on Omniglot 20-way 1-shot. Its own, 20 for characters, was chosen there by `python -m metakm.run --algo
cavia --dataset omniglot --inner-lr RATE --iterations 100 --meta-batch 4 --val-every 100 --val-tasks 50` (seed 0), which
ends at 6.4 % on meta-validation with 2, 11.5 with 5 and 14.0 with 20; chance is 5. More than 20 was not tried.

For photographs, `quick` and `table3` have the authors' settings for mini-ImageNet, but an inner rate of 10 instead of
their 1, chosen by `python -m metakm.run --algo cavia --dataset mini-imagenet --ways 5 --shots 1 --test-queries 15
--preset table3 --backbone conv4-64-pool --iterations 150 --schedule constant --val-every 75 --val-tasks 100 --inner-lr
RATE` (seed 0): on meta-validation it ends at 19.9 % with 1, 25.1 with 10 and 25.3 with 50; chance is 20. With 10 and
the settings that `table3` has for other strategies (`--inner-steps 5 --test-inner-steps 5 --meta-lr 0.003 --grad-clip
0.01 --learn-inner-lr --inner-lr-per-step`) it ends at 24.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metakm.errors import UserError
from metakm.fields import require
from metakm.models.layers import Linear
from metakm.modulation.norms import is_norm
from metakm.options import RateOptions
from metakm.strategies.base import PresetValues, Strategy
from metakm.strategies.interfaces import InnerLoop
from metakm.strategies.network import Classifier, call_with
from metakm.strategies.registry import register_strategy


@dataclass(frozen=True, kw_only=True)
class CAVIAOptions(RateOptions):
    """Options of CAVIA."""

    contexts: int = 100
    """Context parameters. 100 as published for mini-ImageNet."""
    layer: int = 0
    """Which norm of the network is modulated, from 1 on; 0: all of them. 3 as published for mini-ImageNet."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.contexts >= 1, "cavia.contexts", "at least 1", self.contexts)
        require(self.layer >= 0, "cavia.layer", "at least 0", self.layer)


class Context(nn.Module):
    """phi, `[contexts]`, or `[T, contexts]` in the inner loop."""

    def __init__(self, contexts: int) -> None:
        super().__init__()
        self.phi = nn.Parameter(torch.zeros(contexts))


class FiLM(nn.Module):
    """The affine parameters of one norm, scaled and shifted by a linear map of the context."""

    def __init__(self, contexts: int, channels: int) -> None:
        super().__init__()
        self.map = Linear(contexts, 2 * channels)
        nn.init.kaiming_uniform_(self.map.weight, nonlinearity="linear")  # the authors'
        nn.init.zeros_(self.map.bias)

    def forward(self, phi: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift, `[..., *S]`, from a context `[..., contexts]` and the norm's own, of shape S."""
        gamma, beta = (each.unflatten(-1, weight.shape) for each in self.map(phi).chunk(2, dim=-1))
        return (1 + gamma) * weight, (1 + gamma) * bias + beta


_PHOTOGRAPHS = {
    "inner_lr": 10.0, "inner_steps": 2, "test_inner_steps": 2, "meta_lr": 1e-3, "grad_clip": 10.0,
    "learn_inner_lr": False, "inner_lr_per_step": False, "cavia.layer": 3,
}  # fmt: skip


@register_strategy("cavia", options=CAVIAOptions)
class CAVIA(Strategy):
    """CAVIA (Zintgraf et al. 2019): adapts a vector of context parameters.

    Raises:
        UserError: no such norm with a scale and a shift in the backbone.
    """

    adapted: Context
    preset_values: ClassVar[PresetValues] = {
        **{(preset, "characters"): {"inner_lr": 20.0} for preset in ("quick", "table3", "paper")},
        **{(preset, "photographs"): _PHOTOGRAPHS for preset in ("quick", "table3")},
        ("paper", "photographs"): {"inner_lr": 1.0},
    }

    def __init__(self, backbone: nn.Module, ways: int, contexts: int = 100, layer: int = 0) -> None:
        super().__init__()
        self.network = Classifier(backbone, ways)
        self.adapted = Context(contexts)
        self.norms = _chosen_norms(self.network, layer)
        sizes = [self.network.get_parameter(f"{name}.weight").numel() for name in self.norms]
        self.films = nn.ModuleList(FiLM(contexts, channels) for channels in sizes)

    def adapt(self, inner: InnerLoop, encoded: Tensor, labels: Tensor) -> nn.Module:
        """See `Strategy`. The context starts at zero in each task, whatever `adapted` holds."""
        start = self.adapted.phi.new_zeros(len(labels), self.adapted.phi.numel(), requires_grad=True)
        return inner.descend((encoded, labels), start={"phi": start})

    def predict(self, adapted: Any, encoded: Tensor) -> Tensor:
        """See `Strategy`."""
        modulated = {}
        for name, film in zip(self.norms, self.films, strict=True):
            own = [self.network.get_parameter(f"{name}.{leaf}") for leaf in ("weight", "bias")]
            modulated[f"{name}.weight"], modulated[f"{name}.bias"] = film(adapted.phi, *own)  # [T, C]
        return call_with(self.network, modulated, encoded)


def _chosen_norms(network: nn.Module, layer: int) -> list[str]:
    """The names of the affine norms of a network: all of them, or number `layer` from 1 on."""
    norms = [
        name
        for name, module in network.named_modules()
        if is_norm(module) and {"weight", "bias"} <= {leaf for leaf, _ in module.named_parameters(recurse=False)}
    ]
    if not norms or layer > len(norms):
        raise UserError(
            f"Expected a backbone with {layer or 'some'} norm layers that scale and shift, got {len(norms)}; use "
            "another backbone" + (", or a smaller --cavia.layer" if norms else "")
        )
    return norms[layer - 1 : layer] if layer else norms

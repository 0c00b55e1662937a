"""BN: only implicit modulation (Hu & Liu, "Kernel Modulation", Sec. III-B).

    y = gamma/sigma W * x + W * (beta - gamma/sigma mu)    (Eq. 8: gamma and beta modulate the kernels W)
    phi' = phi - alpha * grad_phi L_support(phi),    phi = {gamma, beta, head}

Sec. III-B is only about the norm layers; the classifier is adapted with them, as in the paper's baseline "BL" (Sec.
IV-A, Table I), which trains the norm layers and the linear classifier. The paper has no few-shot experiment with it.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from metakm.options import HeadOptions
from metakm.strategies.network import Classifier, is_norm_affine
from metakm.strategies.parameter_subset import DirectStrategy
from metakm.strategies.registry import register_strategy


@register_strategy("bn", options=HeadOptions)
class BN(DirectStrategy):
    """Implicit modulation alone (Hu & Liu, Sec. III-B): adapts the norm affine and the head."""

    head_prefix: ClassVar[str | None] = "head__"

    def __init__(self, backbone: nn.Module, ways: int) -> None:
        super().__init__(
            backbone, ways, lambda network, name: name.startswith(Classifier.HEAD) or is_norm_affine(network, name)
        )

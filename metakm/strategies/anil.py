"""ANIL: adapt only the head (Raghu et al. 2020, "Rapid Learning or Feature Reuse?", Sec. 4).

    head' = head - alpha * grad_head L_support(head; features)

The features do not depend on the inner loop: the backbone runs once over the support and once over the query images,
not once per step. Support and query are encoded separately, so that batch statistics never mix them.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from metakm.options import HeadOptions
from metakm.strategies.base import Strategy
from metakm.strategies.network import make_head
from metakm.strategies.registry import register_strategy


@register_strategy("anil", options=HeadOptions)
class ANIL(Strategy):
    """ANIL (Raghu et al. 2020): adapts the head."""

    head_prefix: ClassVar[str | None] = ""

    def __init__(self, backbone: nn.Module, ways: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.adapted = make_head(backbone, ways)

    def encode(self, images: Tensor) -> Tensor:
        """Features `[T, n, F]`."""
        features: Tensor = self.backbone(images)
        return features

    def predict(self, adapted: nn.Module, encoded: Tensor) -> Tensor:
        """See `Strategy`."""
        logits: Tensor = adapted(encoded)
        return logits

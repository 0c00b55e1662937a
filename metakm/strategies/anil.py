"""ANIL: adapt only the classifier (Raghu et al. 2020, "Rapid Learning or Feature Reuse?", Sec. 4).

    head' = head - alpha * grad_head L_support(head; features)

The features do not depend on the inner loop: the backbone runs once over the support and once over the query images,
not once per step. Support and query are encoded separately, so that batch statistics never mix them.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from metakm.options import HeadOptions
from metakm.strategies.base import PresetValues, Strategy
from metakm.strategies.network import make_head
from metakm.strategies.registry import register_strategy


@register_strategy("anil", options=HeadOptions)
class ANIL(Strategy):
    """ANIL (Raghu et al. 2020): adapts the head."""

    head_prefix: ClassVar[str | None] = ""
    # Searched: results/search/table3-mini-imagenet-5w1s/, rounded to two digits.
    preset_values: ClassVar[PresetValues] = {
        ("table3", "photographs"): {
            "learn_inner_lr": True,
            "inner_lr_per_step": True,
            "inner_lr": 0.015,
            "meta_lr": 1e-3,
            "grad_clip": 0.0,
        }
    }

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

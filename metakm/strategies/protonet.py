"""Prototypical networks: the nearest class mean (Snell, Swersky & Zemel 2017, Eq. 1 and 2).

    c_k = mean of f(x) over the support images x of class k
    p(y = k | x) = softmax_k(-|f(x) - c_k|^2)

A baseline without an inner loop: nothing is adapted by gradients, the inner learning rate and steps have no effect, and
there is no head. To adapt to a task is to compute its prototypes, as many as its support set has classes.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metakm.strategies.base import InnerLoop, Strategy
from metakm.strategies.registry import register_strategy


@register_strategy("protonet")
class ProtoNet(Strategy):
    """`adapted` = nothing."""

    variants: ClassVar[frozenset[str]] = frozenset()
    recordable: ClassVar[bool] = False  # `prototypes` counts the classes

    def __init__(self, backbone: nn.Module, ways: int) -> None:
        super().__init__()
        del ways  # the labels of a support set say how many prototypes there are
        self.backbone = backbone
        self.adapted = nn.Module()

    def encode(self, images: Tensor) -> Tensor:
        """Features `[T, n, F]`, in the precision of the parameters."""
        features: Tensor = self.backbone(images)
        return features.to(next(self.backbone.parameters()).dtype)

    def adapt(self, inner: InnerLoop, encoded: Tensor, labels: Tensor) -> Tensor:
        """Prototypes `[T, N, F]`."""
        del inner
        return prototypes(encoded, labels)

    def predict(self, adapted: Tensor, encoded: Tensor) -> Tensor:
        """Minus the squared distances of the features to the prototypes."""
        squares = encoded.square().sum(-1, keepdim=True) + adapted.square().sum(-1).unsqueeze(1)  # [T, n, N]
        return torch.baddbmm(squares, encoded, adapted.transpose(1, 2), beta=-1, alpha=2)

    def forward(self, images: Tensor) -> Tensor:
        """Features `[T, n, F]`: without a support set there are no logits."""
        return self.encode(images)


def prototypes(features: Tensor, labels: Tensor) -> Tensor:
    """Mean features of each class `[T, N, F]`, from features `[T, n, F]` and labels `[T, n]` in 0..N-1."""
    members = F.one_hot(labels).to(features.dtype)  # [T, n, N]
    return members.transpose(1, 2) @ features / members.sum(dim=1).unsqueeze(-1)

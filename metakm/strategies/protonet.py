"""Prototypical networks: the nearest class mean (Snell, Swersky & Zemel 2017, Eq. 1 and 2), with a scale.

    c_k = mean of f(x) over the support images x of class k
    p(y = k | x) = softmax_k(-s |f(x) - c_k|^2),    s = min(1, 8/F) for F features

A baseline without an inner loop: nothing is adapted by gradients, the inner learning rate and steps have no effect, and
there is no head. Adapting to a task means computing its prototypes, one for each class of its support set.

The paper has s = 1, and its distance grows with F: on photographs (F = 800) the logits of an untrained network are more
than a hundred apart, and the loss of `protonet` was 32 in iterations 21 to 40 of `--preset quick`. It is 1.54 with 8/F
and 1.51 with 1/F. On Omniglot 20-way 1-shot (F = 64), with pooling, it had 89.7 % on meta-validation with s = 1, 91.4 %
with 8/F and 88.5 % with 1/F after 250 iterations of 2 tasks of 5 queries (seed 0, Adam at 3e-3 with a cosine, clipped
at 0.01).

With `distance="cosine"`, which suits a backbone that was trained before, features are divided by their length, and the
logits are `scale` times the cosine of f(x) and c_k (Gidaris & Komodakis 2018, Eq. 5, with the mean of normalised
features as a class's weight).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metakm.errors import UserError
from metakm.fields import require
from metakm.options import PrototypeOptions
from metakm.strategies.base import Strategy
from metakm.strategies.interfaces import InnerLoop
from metakm.strategies.registry import register_strategy


class Prototypical(Strategy):
    """A strategy whose logits before the first inner step are minus s times squared distances to prototypes."""

    any_ways: ClassVar[bool] = True
    supports_cuda_graph: ClassVar[bool] = False  # `prototypes` counts the classes

    scaled_distance: bool
    """s = min(1, 8/F); False: s = 1, as published."""

    def distance_scale(self, features: int) -> float:
        """The factor s on squared distances between vectors of this many features."""
        return min(1.0, 8 / features) if self.scaled_distance else 1.0


@dataclass(frozen=True, kw_only=True)
class ProtoNetOptions(PrototypeOptions):
    """Options of prototypical networks."""

    distance: Literal["euclidean", "cosine"] = "euclidean"
    """euclidean, as published: squared distances to class means; cosine: of features divided by their length."""
    scale: float = 10.0
    """By which cosines are multiplied."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.scale < math.inf, "protonet.scale", "a positive number", self.scale)
        if self.distance != "cosine" and self.scale != type(self).scale:
            raise UserError(f"Expected --protonet.distance cosine with --protonet.scale, got {self.distance}; drop one")


@register_strategy("protonet", options=ProtoNetOptions)
class ProtoNet(Prototypical):
    """Prototypical networks (Snell et al. 2017): adapts nothing."""

    def __init__(
        self,
        backbone: nn.Module,
        ways: int,
        distance: Literal["euclidean", "cosine"] = "euclidean",
        scale: float = 10.0,
        scaled_distance: bool = False,
    ) -> None:
        super().__init__()
        self.scaled_distance = scaled_distance
        del ways  # the labels of a support set determine the number of prototypes
        self.backbone, self.cosine, self.scale = backbone, distance == "cosine", scale
        self.adapted = nn.Module()

    def encode(self, images: Tensor) -> Tensor:
        """Features `[T, n, F]`, in the precision of the parameters."""
        features: Tensor = self.backbone(images)
        features = features.to(next(self.backbone.parameters()).dtype)
        return F.normalize(features, dim=-1) if self.cosine else features

    def adapt(self, inner: InnerLoop, encoded: Tensor, labels: Tensor) -> Tensor:
        """Prototypes `[T, N, F]`."""
        del inner
        return prototypes(encoded, labels)

    def predict(self, adapted: Tensor, encoded: Tensor) -> Tensor:
        """Minus s times the squared distances of the features to the prototypes, or scaled cosines."""
        if self.cosine:
            return self.scale * encoded @ F.normalize(adapted, dim=-1).transpose(1, 2)
        s = self.distance_scale(encoded.shape[-1])
        squares = encoded.square().sum(-1, keepdim=True) + adapted.square().sum(-1).unsqueeze(1)  # [T, n, N]
        return torch.baddbmm(squares, encoded, adapted.transpose(1, 2), beta=-s, alpha=2 * s)

    def forward(self, images: Tensor) -> Tensor:
        """Features `[T, n, F]`: without a support set there are no logits."""
        return self.encode(images)


def prototypes(features: Tensor, labels: Tensor) -> Tensor:
    """Mean features of each class `[T, N, F]`, from features `[T, n, F]` and labels `[T, n]` in 0..N-1.

    NaN for a class without images.
    """
    members = F.one_hot(labels).to(features.dtype)  # [T, n, N]
    return members.transpose(1, 2) @ features / members.sum(dim=1).unsqueeze(-1)

"""SimpleShot: the nearest class mean of centred, normalised features (Wang et al. 2019, "SimpleShot", Sec. 3).

    z(x) = (f(x) - m) / |f(x) - m|    (CL2N; m: the mean feature of the training images)
    c_k = mean of z(x) over the support images x of class k,    logits of a query q = -|z(q) - c_k|^2

`l2n` leaves m out, and `un` the length, too. f is trained by classification (see `class_training.py`), or comes with
`--weights`. Nothing is adapted by gradients, the inner learning rate and steps have no effect, and tasks may have any
number of classes.

Deviations: the paper takes m from all training images once f is trained. Here m is a parameter that the outer loop
learns beside f, by half the squared distance to the features of each batch, which are constants in it, so that it
follows their mean; with weights that were never trained here m is zero, and `cl2n` is `l2n`. Training: see
`class_training.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metakm.options import Options
from metakm.strategies.class_training import ClassTraining
from metakm.strategies.interfaces import InnerLoop
from metakm.strategies.network import feature_count, make_head
from metakm.strategies.protonet import prototypes
from metakm.strategies.registry import register_strategy

FeatureTransform = Literal["cl2n", "l2n", "un"]


@dataclass(frozen=True, kw_only=True)
class SimpleShotOptions(Options):
    """Options of SimpleShot."""

    transform: FeatureTransform = "cl2n"
    """What is done to features before distances: cl2n subtracts the mean of the training images and divides by the length, l2n divides alone, un does nothing."""  # noqa: E501


@register_strategy("simpleshot", options=SimpleShotOptions)
class SimpleShot(ClassTraining):
    """SimpleShot (Wang et al. 2019): adapts nothing."""

    any_ways: ClassVar[bool] = True

    def __init__(
        self,
        backbone: nn.Module,
        ways: int,
        train_classes: int | None = None,
        transform: FeatureTransform = "cl2n",
    ) -> None:
        super().__init__()
        del ways  # the labels of a support set determine the number of classes
        self.backbone, self.transform = backbone, transform
        self.classifier = None if train_classes is None else make_head(backbone, train_classes)
        self.mean = nn.Parameter(torch.zeros(feature_count(backbone))) if transform == "cl2n" else None
        self.adapted = nn.Module()

    def features(self, images: Tensor) -> Tensor:
        """See `ClassTraining`."""
        features: Tensor = self.backbone(images)
        return features.to(next(self.backbone.parameters()).dtype)

    def encode(self, images: Tensor) -> Tensor:
        """z, `[T, n, F]`."""
        z = self.features(images)
        z = z if self.mean is None else z - self.mean
        return z if self.transform == "un" else F.normalize(z, dim=-1)

    def adapt(self, inner: InnerLoop, encoded: Tensor, labels: Tensor) -> Tensor:
        """The class means, `[T, N, F]`."""
        del inner
        return prototypes(encoded, labels)

    def predict(self, adapted: Tensor, encoded: Tensor) -> Tensor:
        """See `Strategy`."""
        return -(encoded.unsqueeze(2) - adapted.unsqueeze(1)).square().sum(dim=-1)  # [T, n, N, F] -> [T, n, N]

    def further_loss(self, features: Tensor) -> Tensor:
        """A term of value zero, whose gradient moves m towards the mean of the features."""
        if self.mean is None:
            return super().further_loss(features)
        distance = (features.detach() - self.mean).square().sum(dim=-1).mean() / 2
        return distance - distance.detach()

    def forward(self, images: Tensor) -> Tensor:
        """z, `[T, n, F]`: without a support set there are no logits."""
        return self.encode(images)

"""R2-D2: ridge regression in closed form (Bertinetto et al. 2019, "... Differentiable Closed-form Solvers", Sec. 3.2).

    W = argmin_W |X W - Y|^2 + lambda |W|^2 = X^T (X X^T + lambda I)^-1 Y    (ridge regression, by Woodbury's identity)
    logits of the queries = alpha X' W

X, `[N*K, F + 1]`, has the support features and a column of ones, as in the authors' code, so that W holds a bias, too;
Y, `[N*K, N]`, has one-hot rows. The system has N*K unknowns, however many features there are; with fewer
features than images, W = (X^T X + lambda I)^-1 X^T Y is solved instead, as the other system is then nearly singular for
a small lambda. lambda and alpha are
learned, as powers of e, which keeps them positive. There are no inner steps: the inner learning rate has no effect, and
tasks may have any number of classes.

Deviations: the paper also adds a learned scalar beta to all logits, which the softmax cancels; there is none here.
lambda is learned with every dataset. The authors divide X and Y by sqrt(N*K) and start from lambda = 50 and
alpha = 1e-4 (10 for Omniglot), for the 3,584 (Omniglot), 8,064 (CIFAR-FS) and 72,576 (mini-ImageNet) features of their
network; the defaults here suit the 64 to 800 of `Conv4`. That network has 96 to 512 filters, leaky ReLU and dropout,
and its features are those of the third and fourth block, concatenated. They train with more ways than they test with,
such as 16 for 5 on mini-ImageNet, and draw the shots anew for each episode (`--train-ways`, `--train-shots`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metakm.fields import require
from metakm.ops.autograd import without_autocast
from metakm.options import Options
from metakm.strategies.base import Strategy
from metakm.strategies.interfaces import InnerLoop
from metakm.strategies.registry import register_strategy


@dataclass(frozen=True, kw_only=True)
class R2D2Options(Options):
    """Where the learned numbers of R2-D2 start."""

    ridge: float = 1.0
    """lambda, the weight of the squared norm of the head."""
    scale: float = 10.0
    """alpha, the factor on the regression's outputs, which lie near 0 and 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ridge", "scale"):
            value = getattr(self, name)
            require(0 < value < float("inf"), f"r2d2.{name}", "above 0", value)


@register_strategy("r2d2", options=R2D2Options)
class R2D2(Strategy):
    """R2-D2 (Bertinetto et al. 2019): adapts nothing; the head is solved for in closed form."""

    any_ways: ClassVar[bool] = True
    supports_cuda_graph: ClassVar[bool] = False  # it counts the classes, and the solver checks its result

    def __init__(self, backbone: nn.Module, ways: int, ridge: float = 1.0, scale: float = 10.0) -> None:
        super().__init__()
        del ways  # the labels of a support set determine the number of classes
        self.backbone = backbone
        self.adapted = nn.Module()
        self.log_ridge = nn.Parameter(torch.tensor(math.log(ridge)))
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def encode(self, images: Tensor) -> Tensor:
        """Features and a one, `[T, n, F + 1]`, in the precision of lambda."""
        return F.pad(self.forward(images), (0, 1), value=1.0)

    @without_autocast
    def adapt(self, inner: InnerLoop, encoded: Tensor, labels: Tensor) -> Tensor:
        """W, `[T, F + 1, N]`."""
        del inner
        return ridge_regression(encoded, F.one_hot(labels).to(encoded.dtype), self.log_ridge.exp())

    def predict(self, adapted: Tensor, encoded: Tensor) -> Tensor:
        """See `Strategy`."""
        return self.log_scale.exp() * (encoded @ adapted)

    def forward(self, images: Tensor) -> Tensor:
        """Features `[T, n, F]`: without a support set there are no logits."""
        features: Tensor = self.backbone(images)
        return features.to(self.log_ridge.dtype)


def ridge_regression(inputs: Tensor, targets: Tensor, ridge: Tensor) -> Tensor:
    """W, `[T, F, N]`, of inputs `[T, n, F]`, targets `[T, n, N]` and a weight of its squared norm, `[]`."""
    images, features = inputs.shape[1:]
    identity = torch.eye(min(images, features), dtype=inputs.dtype, device=inputs.device)
    if images > features:
        gram = inputs.transpose(1, 2) @ inputs  # [T, F, F]
        solved: Tensor = torch.linalg.solve(gram + ridge * identity, inputs.transpose(1, 2) @ targets)
        return solved
    gram = inputs @ inputs.transpose(1, 2)  # [T, n, n]
    dual: Tensor = torch.linalg.solve(gram + ridge * identity, targets)  # [T, n, N]
    return inputs.transpose(1, 2) @ dual

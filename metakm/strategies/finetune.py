"""Fine-tuning of all weights on a task (Dhillon et al. 2020, "A Baseline for Few-Shot Image Classification", Sec. 3.1).

    w_k = mean of f(x) / |f(x)| over the support images x of class k    (support-based initialisation)
    logit of class k = s cos(w_k, f(x))
    (f, w)' = (f, w) - alpha grad L_support(f, w)    (every weight of the network, its norms included)

f comes with `--weights` (then `--iterations 0` trains nothing before), or is trained by classification (see
`class_training.py`). So before the first step predictions are those of the nearest class mean by cosine. The number of
classes is that of the support set.

After `python -m metakm.run --algo finetune --dataset omniglot --iterations 100 --meta-batch 12 --queries 1
--test-queries 5` (seed 0) `benchmarks/task_rates.py` finds 33.1 % on 50 meta-validation tasks with 20 steps of 0.1,
which `quick` and `table3` take for characters, 32.8 with 5 of 0.1, 32.4 with 20 of 0.01, and 32.4 without a step:
fine-tuning adds little to the class means there. Photographs were not searched.

Deviations: the authors fine-tune with Adam, 25 passes at 5e-5, on augmented images, and put w on the logits of the
training classes; here each step is plain gradient descent on the support set with `--inner-lr` and
`--test-inner-steps`, and w is on the features. Their transductive variant is not here. Training: see
`class_training.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from metakm.fields import require
from metakm.options import Options
from metakm.strategies.base import PresetValues
from metakm.strategies.class_training import ClassTraining, CosineLinear
from metakm.strategies.interfaces import InnerLoop
from metakm.strategies.network import SharedParameters, call_with, feature_count, make_head
from metakm.strategies.protonet import prototypes
from metakm.strategies.registry import register_strategy


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(Options):
    """Options of fine-tuning."""

    scale: float = 10.0
    """s, the factor on the cosines."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.scale < float("inf"), "finetune.scale", "above 0", self.scale)


class CosineClassifier(nn.Module):
    """A backbone and a head of cosines; `[T, n, C, H, W]` to logits `[T, n, N]`."""

    def __init__(self, backbone: nn.Module, ways: int, scale: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = CosineLinear(feature_count(backbone), ways, scale)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.head(self.backbone(images))
        return logits


@register_strategy("finetune", options=FinetuneOptions)
class Finetune(ClassTraining):
    """Fine-tuning (Dhillon et al. 2020): adapts the whole network, and a cosine head for each task."""

    any_ways: ClassVar[bool] = True

    preset_values: ClassVar[PresetValues] = {
        key: {**values, **({"inner_lr": 0.1, "test_inner_steps": 20} if key[1] == "characters" else {})}
        for key, values in ClassTraining.preset_values.items()
    }

    def __init__(self, backbone: nn.Module, ways: int, train_classes: int | None = None, scale: float = 10.0) -> None:
        super().__init__()
        self.network = CosineClassifier(backbone, ways, scale)
        self.classifier = None if train_classes is None else make_head(backbone, train_classes)
        self.adapted = SharedParameters(self.network, [name for name, _ in self.network.named_parameters()])

    def features(self, images: Tensor) -> Tensor:
        """See `ClassTraining`."""
        features: Tensor = self.network.backbone(images)
        return features

    def adapt(self, inner: InnerLoop, encoded: Tensor, labels: Tensor) -> nn.Module:
        """See `Strategy`. The head starts from the class means, whatever it holds."""
        unit = F.normalize(self.features(encoded).to(self.network.head.weight.dtype), dim=-1)
        return inner.descend((encoded, labels), start={"head__weight": prototypes(unit, labels)})  # [T, N, F]

    def predict(self, adapted: Any, encoded: Tensor) -> Tensor:
        """See `Strategy`."""
        return call_with(self.network, adapted(), encoded)

    def forward(self, images: Tensor) -> Tensor:
        """Features `[T, n, F]`: without a support set there are no logits."""
        return self.features(images)

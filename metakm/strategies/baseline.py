"""Baseline: a classifier of the training classes, then a new one for each task (Chen et al. 2019, Sec. 3.2).

    head' = head - alpha grad_head L_support(head; f)    (f, the backbone, stays as it is)

f is trained by classification (see `class_training.py`), or comes with `--weights`. At the test the inner loop trains
a new linear head on the support features, from the same random start in every task; it is no part of what the outer
loop learns. The paper ("A Closer Look at Few-shot Classification") takes 100 steps.

The presets `quick` and `table3` test with 100 steps, too. After `python -m metakm.run --algo baseline --dataset
omniglot --iterations 100 --meta-batch 12 --queries 1 --test-queries 5` (seed 0) `benchmarks/task_rates.py` finds 28.9 %
on 50 meta-validation tasks with 100 steps of 0.5, which both take for characters, 28.9 with 5, 27.6 with 50, and 24.0
after 20 steps of 0.5. Photographs were not searched.

Deviations: the authors' 100 passes are SGD with batches of 4, rate 0.01, momentum and dampening of 0.9 and a weight
decay of 0.001; here each step is plain gradient descent on the whole support set, with `--inner-lr` and
`--test-inner-steps`. Training: see `class_training.py`.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from metakm.options import Options
from metakm.strategies.base import PresetValues
from metakm.strategies.class_training import ClassTraining
from metakm.strategies.network import make_head
from metakm.strategies.registry import register_strategy


@register_strategy("baseline", options=Options)
class Baseline(ClassTraining):
    """Baseline (Chen et al. 2019): a new head for each task on fixed features."""

    preset_values: ClassVar[PresetValues] = {
        key: {**values, "test_inner_steps": 100, **({"inner_lr": 0.5} if key[1] == "characters" else {})}
        for key, values in ClassTraining.preset_values.items()
    }

    def __init__(self, backbone: nn.Module, ways: int, train_classes: int | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.adapted = make_head(backbone, ways)
        self.classifier = None if train_classes is None else make_head(backbone, train_classes)

    def features(self, images: Tensor) -> Tensor:
        """See `ClassTraining`."""
        features: Tensor = self.backbone(images)
        return features

    def encode(self, images: Tensor) -> Tensor:
        """Features `[T, n, F]`."""
        return self.features(images)

    def predict(self, adapted: nn.Module, encoded: Tensor) -> Tensor:
        """See `Strategy`."""
        logits: Tensor = adapted(encoded)
        return logits

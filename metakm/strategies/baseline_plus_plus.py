"""Baseline++: as Baseline, with cosine heads (Chen et al. 2019, "A Closer Look ...", Sec. 3.2).

    logit of class k = s cos(w_k, f(x))

for the training classes and for those of a task, whose w the inner loop trains from the same random start in every task
(see `baseline.py`, also for how the training of a task deviates from the paper's).

Deviations: the paper's equation has no s; the authors' code has s = 2 for up to 200 classes and 10 for more, and learns
a length of each w_k, too. Here s is `--baseline++.scale`, one for the training classes and for tasks, and w_k counts by
its direction alone, as in the paper. `quick` and `table3` follow that code: s = 10 for characters, 2 for photographs.

After the command in `baseline.py` with `--algo baseline++ --baseline++.scale 20`, `benchmarks/task_rates.py` finds
36.5 % on 50 meta-validation tasks with 100 steps of 0.5, 36.2 with 5 and 35.3 with 0.05; s was not searched there. For
photographs, after `python -m metakm.run --algo baseline++ --dataset mini-imagenet --preset table3 --iterations 300
--baseline++.scale S`, it finds 36.0, 36.2 and 36.2 % on 100 such tasks with 100 steps of 0.05, 0.5 and 5 and s = 2, and
32.6, 33.2 and 33.8 with s = 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from metakm.fields import require
from metakm.options import Options
from metakm.strategies.base import PresetValues
from metakm.strategies.baseline import Baseline
from metakm.strategies.class_training import CosineLinear
from metakm.strategies.network import feature_count
from metakm.strategies.registry import register_strategy


@dataclass(frozen=True, kw_only=True)
class BaselinePlusPlusOptions(Options):
    """Options of Baseline++."""

    scale: float = 10.0
    """s, the factor on the cosines, for the training classes and in a task."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.scale < float("inf"), "baseline++.scale", "above 0", self.scale)


_PHOTOGRAPHS = {"baseline++.scale": 2.0, "inner_lr": 5.0}


@register_strategy("baseline++", options=BaselinePlusPlusOptions)
class BaselinePlusPlus(Baseline):
    """Baseline++ (Chen et al. 2019): as Baseline, with cosine heads."""

    preset_values: ClassVar[PresetValues] = {
        key: {**values, **_PHOTOGRAPHS} if key[1] == "photographs" else values
        for key, values in Baseline.preset_values.items()
    }

    def __init__(self, backbone: nn.Module, ways: int, train_classes: int | None = None, scale: float = 10.0) -> None:
        super().__init__(backbone, ways, train_classes)  # its linear heads give way to those of cosines
        features = feature_count(backbone)
        self.adapted = CosineLinear(features, ways, scale)
        if train_classes is not None:
            self.classifier = CosineLinear(features, train_classes, scale)

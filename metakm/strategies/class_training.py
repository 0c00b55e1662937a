"""Meta-training by plain classification: the common part of baselines that learn a task only at the test.

    L = the mean over an episode's images x, support and query, of -log softmax_c(x)(C f(x))

f is the backbone, c(x) the class of x among all classes of the training split, and C a classifier of all of them. With
characters, which episodes turn, a class turned by 90 degrees is another class, as is usual for Omniglot.

Deviation from all papers that train so: they draw mini-batches of images of any class, and augment them; here a batch
is a few episodes, with several images of each class. The presets `quick` and `table3` bring it closer to theirs, with
one query per class and more episodes instead: with 1 shot, as many images per iteration as for others. Tests have the
same queries as theirs. After `python -m metakm.run --algo simpleshot --dataset omniglot --iterations 100
--val-every 100 --val-tasks 50` (seed 0) meta-validation is at 15.1 % with `--meta-batch 4 --queries 5`, and at 33.1
with the same number of images as `--meta-batch 12 --queries 1 --test-queries 5`; photographs were not searched.

Each episode is normalised by its own batch statistics, and at the test too, unless `--bn-mode running` asks for the
averages, as published.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metakm.errors import UserError
from metakm.models.batch_statistics import statistics_from
from metakm.strategies.base import PresetValues, Strategy
from metakm.strategies.interfaces import EpisodeBatch, InnerLoop
from metakm.strategies.losses import cross_entropy
from metakm.strategies.registry import registered_name


class ClassTraining(Strategy):
    """A strategy whose outer loss is that of classifying the training classes; no gradient goes through `adapt`.

    A subclass sets `classifier` in its constructor, and defines `features`.
    """

    preset_values: ClassVar[PresetValues] = {
        ("quick", "characters"): {"queries": 1, "test_queries": 5, "meta_batch": 24},
        ("quick", "photographs"): {"queries": 1, "test_queries": 15, "meta_batch": 32},
        ("table3", "characters"): {"queries": 1, "meta_batch": 11},
        ("table3", "photographs"): {"queries": 1, "meta_batch": 11},
    }
    classifier: nn.Module | None
    """Features `[T, n, F]` to logits of all training classes, `[T, n, C]`; None: it can be tested, not trained."""

    def features(self, images: Tensor) -> Tensor:
        """Features `[T, n, F]` of images, in the precision of the parameters."""
        raise NotImplementedError

    def outer_loss(self, inner: InnerLoop, episodes: EpisodeBatch) -> tuple[Tensor, Tensor]:
        """See `Strategy`. The logits are those of the episode's classes among all training classes.

        Raises:
            UserError: no classifier, or episodes without class numbers, or with numbers that it does not have.
        """
        del inner
        support = episodes.support_labels.shape[1]
        with statistics_from(support, support + episodes.query_labels.shape[1]):  # of layers with `bn_mode="support"`
            features = self.features(torch.cat([episodes.support_images, episodes.query_images], dim=1))
        logits = self.class_logits(features)  # [T, N*(K+Q), C]
        classes = _class_numbers(episodes, logits.shape[-1])
        labels = torch.cat([episodes.support_labels, episodes.query_labels], dim=1)
        loss = cross_entropy(logits, classes.gather(1, labels)).mean()
        queries = logits[:, support:]
        own = queries.gather(2, classes.unsqueeze(1).expand(-1, queries.shape[1], -1))  # [T, N*Q, N]
        return loss + self.further_loss(features), own

    def class_logits(self, features: Tensor) -> Tensor:
        """Logits of all training classes, `[T, n, C]`."""
        if self.classifier is None:
            raise UserError(
                f"Expected train_classes, the number of training classes, to train {registered_name(type(self))!r}, "
                "got none; pass it where the strategy or its learner is made"
            )
        logits: Tensor = self.classifier(features)
        return logits

    def further_loss(self, features: Tensor) -> Tensor:
        """A scalar that a subclass adds to the loss; zero by default."""
        return features.new_zeros(())


def _class_numbers(episodes: EpisodeBatch, known: int) -> Tensor:
    """Numbers of the classes of each task, `[T, N]`, all below `known`."""
    classes: Tensor | None = getattr(episodes, "classes", None)  # a source of one's own may not have it
    if classes is None:
        raise UserError(
            "Expected episodes with the numbers of their classes among all training classes, got none; draw them with "
            "metakm.EpisodeSampler, or set Episodes.classes"
        )
    if not (classes.is_cuda and torch.cuda.is_current_stream_capturing()) and int(classes.max()) >= known:
        raise UserError(
            f"Expected classes numbered below {known}, the train_classes of the strategy, got {int(classes.max())}; "
            "build it for FewShotDataset.n_episode_classes of the training split"
        )
    return classes


class CosineLinear(nn.Module):
    """Scaled cosines of features `[T, n, F]` and class weights, `[N, F]` or `[T, N, F]`; logits `[T, n, N]`."""

    def __init__(self, features: int, classes: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(classes, features))
        nn.init.kaiming_uniform_(self.weight, nonlinearity="linear")

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        directions = F.normalize(self.weight, dim=-1)
        unit = F.normalize(features.to(self.weight.dtype), dim=-1)
        return self.scale * (unit @ directions.transpose(-1, -2))

"""The contract of every adaptation strategy, and the parts that most of them share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metakm.errors import UserError
from metakm.models.batch_statistics import statistics_from, tracking_statistics
from metakm.models.layers import BatchNorm2d
from metakm.models.modes import BatchNormMode
from metakm.options import Options, RateOptions
from metakm.strategies.interfaces import (
    Construction,
    EpisodeBatch,
    InnerLoop,
    QueryResult,
)
from metakm.strategies.losses import accuracy, cross_entropy, one_per_task, require_ways

PresetValues = Mapping[tuple[str, str], Mapping[str, Any]]


class Strategy(nn.Module):
    """What the inner loop adapts, and how predictions follow from it.

    The inner loop updates a copy of `adapted` for each task, with a leading task axis on every parameter; only the
    outer loop learns all other parameters, which get their meta-gradient through the graph.

    A strategy sets `adapted` in its constructor (`__init__(self, backbone, ways, **options)`), defines `predict` and
    may override `encode`, `adapt`, `inner_loss`, `outer_loss` and `metric`. It knows nothing about data or files.
    """

    adapted: nn.Module
    head_prefix: ClassVar[str | None] = None
    """Prefix of the linear head's `weight` and `bias` in `adapted`; None without such a head."""
    options: ClassVar[type[Options]] = RateOptions
    """What a run may change of this strategy, see `metakm.options`; `register_strategy` sets it. Options of the
    strategy's own, and `implicit`, are keywords of its constructor."""

    preset_values: ClassVar[PresetValues] = {}
    """Values that replace a preset's for this strategy: fields of a run and options, by their flat names, for a preset
    and a family of data such as `("quick", "characters")`. Derived classes have the same unless they say so."""

    own_network: ClassVar[bool] = False
    """True: the strategy has a network of its own and gets None as `backbone`; its runs have `--backbone own`."""

    any_ways: ClassVar[bool] = False
    """Whether tasks may have any number of classes, as with prototypes: no parameter belongs to a class."""

    supports_cuda_graph: ClassVar[bool] = True
    """Whether the meta-gradient can be replayed as a CUDA graph, without running its Python code again. False if the
    code synchronizes with the GPU, as for counting classes, or differs between calls (a counter, a random number)."""

    uses_progress: ClassVar[bool] = False
    """Whether the strategy reads `inner.progress`. Its meta-gradient is then not replayed as a CUDA graph, and a
    finished run of it cannot be resumed for more iterations."""

    construction: Construction | None = None
    """How `make_strategy` built it; None if its class was called directly."""

    def encode(self, images: Tensor) -> Tensor:
        """Compute what does not depend on `adapted`, once per batch of episodes.

        Args:
            images: `[T, n, C, H, W]`, the support or the query images.
        """
        return images

    def predict(self, adapted: Any, encoded: Tensor) -> Tensor:
        """Logits `[T, n, N]`.

        Args:
            adapted: `self.adapted`, or what `adapt` returned: by default a copy of it whose parameters have a leading
                task axis.
            encoded: what `encode` returned.
        """
        del adapted, encoded
        raise UserError(f"Expected {type(self).__qualname__} to define predict(self, adapted, encoded); add it")

    def adapt(self, inner: InnerLoop, encoded: Tensor, labels: Tensor) -> Any:
        """What `predict` needs for each task: by default `adapted` after gradient descent on the support loss.

        Args:
            encoded: what `encode` returned for the support images.
            labels: `[T, N*K]`.
        """
        return inner.descend((encoded, labels))

    def inner_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each task, `[T]`: what the inner steps descend on, and by default the query loss, too.

        By default the mean cross-entropy. With a loss of your own, labels may be targets `[T, n, D]`.

        Args:
            logits: what `predict` returned, `[T, n, N]`.
            labels: `[T, n]`.
        """
        return cross_entropy(logits, labels)

    def metric(self, logits: Tensor, labels: Tensor) -> Tensor:
        """How good the predictions of each task are, `[T]`; more is better. By default the fraction of right answers.

        It chooses the best model on meta-validation, and it is what rows and results call accuracy.
        """
        return accuracy(logits, labels)

    def outer_loss(self, inner: InnerLoop, episodes: EpisodeBatch) -> tuple[Tensor, Tensor]:
        """The scalar loss that the outer loop minimises, and the query logits `[T, N*Q, N]`.

        By default the mean query loss after adaptation (Finn et al. 2017, Eq. 1), or with `step_weights` after each
        inner step, times its weight (MAML++: Antoniou, Edwards & Storkey 2019, Eq. 3).
        """
        weights = inner.step_weights
        results = self.query_results(inner, episodes, every_step=weights is not None)
        weighted = [w * r.losses.mean() for w, r in zip(weights or [1.0], results, strict=True)]
        return torch.stack(weighted).sum(), results[-1].logits

    def query_results(self, inner: InnerLoop, episodes: EpisodeBatch, *, every_step: bool = False) -> list[QueryResult]:
        """Adapt to each task, and return the queries' losses and logits after the last inner step.

        Args:
            every_step: after each inner step, in order; each then costs a pass over the queries, and its graph.

        Raises:
            UserError: `every_step` for a strategy without inner steps.
        """
        results: list[QueryResult] = []

        def query(adapted: Any) -> None:
            logits = self.query_logits(adapted, episodes.support_images, episodes.query_images)
            require_ways(logits, episodes.support_labels)
            losses = self.inner_loss(logits, episodes.query_labels)
            tasks = len(episodes.query_labels)
            results.append(QueryResult(one_per_task(losses, tasks, f"{type(self).__qualname__}.inner_loss"), logits))

        def after(step: int, adapted: nn.Module) -> None:
            if step + 1 < inner.steps:
                query(adapted)

        if every_step:
            inner.after_each_step(after)
        query(self.adapt(inner, self.encode(episodes.support_images), episodes.support_labels))
        if every_step and len(results) != max(1, inner.steps):
            raise UserError(
                f"Expected inner steps for the query loss after each of them, got none by {type(self).__qualname__}; "
                "leave out step_weights, or every_step"
            )
        return results

    def query_logits(self, adapted: Any, support_images: Tensor, query_images: Tensor) -> Tensor:
        """Logits `[T, n, N]` of the query images; layers of `bn_mode="support"` take their statistics from the support.

        Args:
            support_images: `[T, N*K, C, H, W]`.
            query_images: `[T, n, C, H, W]`.
        """
        if "support" not in self.bn_modes:
            return self.predict(adapted, self.encode(query_images))
        reference = support_images.shape[1]
        images = torch.cat([support_images, query_images], dim=1)  # [T, N*K + n, C, H, W]
        with statistics_from(reference, images.shape[1]):
            return self.predict(adapted, self.encode(images))[:, reference:]

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[T, n, N]` before any adaptation; overridden if there are none without a support set."""
        return self.predict(self.adapted, self.encode(images))

    @torch.no_grad()
    def track_statistics(self, images: Tensor) -> None:
        """Fold `images` into the running statistics of `bn_mode="running"` layers, at the unadapted weights."""
        with tracking_statistics():
            self(images)

    @property
    def bn_modes(self) -> set[BatchNormMode]:
        """The modes of the batch-norm layers."""
        return {module.mode for module in self.modules() if isinstance(module, BatchNorm2d)}

    def head_parameters(self) -> dict[str, nn.Parameter]:
        """The `weight` and `bias` of the linear head by their names in `adapted`; empty without such a head."""
        if self.head_prefix is None:
            return {}
        names = (f"{self.head_prefix}weight", f"{self.head_prefix}bias")
        return {name: p for name, p in self.adapted.named_parameters() if name in names}

    def parameter_counts(self) -> tuple[int, int]:
        """The number of parameters that the inner loop adapts, and of all parameters, each counted once."""
        return (
            sum(p.numel() for p in self.adapted.parameters()),
            sum(p.numel() for p in self.parameters()),
        )

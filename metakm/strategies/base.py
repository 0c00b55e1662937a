"""The contract of every adaptation strategy, and the parts that most of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metakm.errors import UserError
from metakm.models.layers import BatchNorm2d, statistics_from, tracking_statistics
from metakm.models.modes import BatchNormMode
from metakm.options import Options, RateOptions

PresetValues = Mapping[tuple[str, str], Mapping[str, Any]]
InnerLR = float | Sequence[Tensor]
Gradients = Sequence[Tensor | None]
Transform = Callable[[nn.Module, Gradients], Gradients]
"""From `adapted` before a step and the gradient of each of its parameters, `[T, ...]`, to what the step subtracts."""


class EpisodeBatch(Protocol):
    """T episodes; see `metakm.data.Episodes`."""

    @property
    def support_images(self) -> Tensor:
        """`[T, N*K, C, H, W]`."""

    @property
    def support_labels(self) -> Tensor:
        """`[T, N*K]`, in 0..N-1."""

    @property
    def query_images(self) -> Tensor:
        """`[T, N*Q, C, H, W]`."""

    @property
    def query_labels(self) -> Tensor:
        """`[T, N*Q]`, in 0..N-1."""


class InnerLoop(Protocol):
    """What a strategy can use of the inner loop, implemented by `metakm.learning.inner_loop.GradientDescent`."""

    @property
    def rates(self) -> Sequence[float | Tensor]:
        """The inner learning rate of each adapted parameter, or `[n]` with one for each of the first n steps."""

    @property
    def step_weights(self) -> Sequence[float] | None:
        """The weight of the query loss after each inner step; None puts all weight on the last."""

    def after_each_step(self, call: Callable[[int, nn.Module], None]) -> None:
        """Make `descend` call this after each step, with the number of the step and the current `adapted`."""

    def descend(
        self,
        *batches: tuple[Tensor, Tensor],
        factors: Iterable[Tensor] | None = None,
        start: Mapping[str, Tensor] | None = None,
        transform: Transform | None = None,
        graph: bool = True,
    ) -> nn.Module:
        """`adapted` after all inner steps, each parameter `[T, ...]`.

        Args:
            batches: pairs of what `encode` returned and labels `[T, n]`; the steps use them in turn.
            factors: one per adapted parameter, of its shape or broadcast to it; multiplies its inner rate.
            start: initial values of the named parameters of `adapted` in place of their own, `[T, ...]`, one per task.
            transform: what a step subtracts, times the rates, in place of the gradients; with `first_order` it gets
                them as constants.
            graph: False discards the graph of the result, so that memory does not grow with the number of steps.
        """


class Strategy(nn.Module):
    """What the inner loop adapts, and how predictions follow from it.

    The inner loop updates a copy of `adapted` for each task, with a leading task axis on every parameter; only the
    outer loop learns all other parameters, which get their meta-gradient through the graph.

    A strategy sets `adapted` in its constructor (`__init__(self, backbone, ways, **options)`), defines `predict` and
    may override `encode`, `adapt` and `outer_loss`. It knows nothing about data or files.
    """

    adapted: nn.Module
    head_prefix: ClassVar[str | None] = None
    """Prefix of the linear head's `weight` and `bias` in `adapted`; None without such a head."""
    options: ClassVar[type[Options]] = RateOptions
    """What a run may change of this strategy, see `metakm.options`; `register_strategy` sets it. Options of the
    strategy's own, and `implicit`, are keywords of its constructor."""

    preset_values: ClassVar[PresetValues] = {}
    """What a preset sets otherwise for this strategy: fields of a run and options, by their flat names, for a preset
    and a family of data such as `("quick", "characters")`. Derived classes have the same unless they say so."""

    own_network: ClassVar[bool] = False
    """True: the strategy has a network of its own and gets None as `backbone`; its runs have `--backbone own`."""

    supports_cuda_graph: ClassVar[bool] = True
    """Whether the meta-gradient can be replayed as a CUDA graph, without running its Python code again. False if the
    code synchronizes with the GPU, as for counting classes, or differs between calls (a counter, a random number)."""

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

    def outer_loss(self, inner: InnerLoop, episodes: EpisodeBatch) -> tuple[Tensor, Tensor]:
        """The scalar loss that the outer loop minimises, and the query logits `[T, N*Q, N]`.

        By default the mean query cross-entropy after adaptation (Finn et al. 2017, Eq. 1), or with `step_weights` after
        each inner step, times its weight (MAML++: Antoniou, Edwards & Storkey 2019, Eq. 3).
        """
        weights = list(inner.step_weights or [1.0])
        earlier: list[Tensor] = []

        def query(adapted: Any) -> tuple[Tensor, Tensor]:
            logits = self.query_logits(adapted, episodes.support_images, episodes.query_images)
            require_ways(logits, episodes.support_labels)
            return cross_entropy(logits, episodes.query_labels).mean(), logits

        def after(step: int, adapted: nn.Module) -> None:
            if step + 1 < len(weights):
                earlier.append(weights[step] * query(adapted)[0])

        inner.after_each_step(after)
        loss, logits = query(self.adapt(inner, self.encode(episodes.support_images), episodes.support_labels))
        if len(earlier) + 1 != len(weights):
            raise UserError(
                f"Expected inner steps for step_weights, got none by {type(self).__qualname__}; leave them out"
            )
        return torch.stack([*earlier, weights[-1] * loss]).sum(), logits

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
        with statistics_from(reference):
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


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each task, `[T]`, from logits `[T, n, N]` and labels `[T, n]`."""
    return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(dim=1)


def with_gradients(loss: Tensor, parameters: Iterable[Tensor], gradients: Iterable[Tensor]) -> Tensor:
    """A scalar with the value of `loss` whose gradient by each of `parameters` is the given one."""
    surrogate = torch.stack([(p * g).sum() for p, g in zip(parameters, gradients, strict=True)]).sum()
    return loss + (surrogate - surrogate.detach())


def require_ways(logits: Tensor, labels: Tensor, *, or_fewer: bool = False) -> None:
    """Refuse logits `[T, n, N]` for tasks without exactly N classes, according to the support labels `[T, N*K]`.

    With fewer classes, the surplus logits would count as wrong answers. Labels cannot be read while a CUDA graph is
    captured; the same ones were checked before, when the code ran eagerly.

    Args:
        or_fewer: not every class needs a label.

    Raises:
        UserError: names both numbers.
    """
    if labels.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    ways = int(labels.max()) + 1
    if ways > logits.shape[-1] or (ways < logits.shape[-1] and not or_fewer):
        raise UserError(
            f"Expected tasks of {logits.shape[-1]} classes, the ways of the strategy, got tasks of {ways}; draw them "
            f"with ways={logits.shape[-1]}, or build the strategy for {ways}"
        )

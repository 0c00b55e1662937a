"""What a strategy is given: episodes, and the inner loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

InnerLR = float | Tensor | Sequence[float | Tensor]
Gradients = Sequence[Tensor | None]
Transform = Callable[[nn.Module, Gradients], Gradients]
"""From `adapted` before a step and the gradient of each of its parameters, `[T, ...]`, to what the step subtracts."""


class EpisodeBatch(Protocol):
    """T episodes; see `metakm.data.Episodes`. Labels may be targets of floating point, `[T, n, D]`."""

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


class Construction(NamedTuple):
    """What `make_strategy` gave a strategy's constructor besides the backbone."""

    ways: int | None
    train_classes: int | None
    options: dict[str, Any]


class QueryResult(NamedTuple):
    """The queries of T tasks after an inner step."""

    losses: Tensor  # [T]
    logits: Tensor  # [T, N*Q, N]


class InnerLoop(Protocol):
    """What a strategy can use of the inner loop, implemented by `metakm.learning.inner_loop.GradientDescent`."""

    @property
    def steps(self) -> int:
        """The number of inner steps."""

    @property
    def progress(self) -> float:
        """The part of meta-training that is done, from 0 to 1; 1 in evaluation.

        Raises:
            UserError: a strategy without `uses_progress`, or a caller of `meta_loss` that does not say it.
        """

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

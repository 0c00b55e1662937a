"""A batch of episodes, and the interface of what draws them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from metakm.errors import UserError


@dataclass(frozen=True, eq=False)
class Episodes:
    """A batch of T episodes.

    Within an episode images are class-major: all images of label 0, then all of label 1, and so on.

    Attributes:
        support_images: float32 in [0, 1], `[T, N*K, C, H, W]`; of a regression any inputs `[T, n, ...]`.
        support_labels: int64 in 0..N-1, `[T, N*K]`; of a regression targets of floating point, `[T, n, D]`.
        query_images: `[T, N*Q, C, H, W]`.
        query_labels: `[T, N*Q]`.
        index: the numbers of the episodes, T of them.
        classes: int64, `[T, N]`: the number of each task's class n among those of the split, in
            0..`FewShotDataset.n_episode_classes`-1; None where the source of the episodes does not number them.
    """

    support_images: Tensor
    support_labels: Tensor
    query_images: Tensor
    query_labels: Tensor
    index: range
    classes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, tasks: int | slice) -> Episodes:
        """Select tasks without copying; the task axis stays, even for a single task.

        Raises IndexError for a number outside the batch.
        """
        if not isinstance(tasks, slice):
            position = range(len(self))[tasks]
            tasks = slice(position, position + 1)
        return Episodes(
            self.support_images[tasks],
            self.support_labels[tasks],
            self.query_images[tasks],
            self.query_labels[tasks],
            self.index[tasks],
            None if self.classes is None else self.classes[tasks],
        )

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Episodes:
        """Move all tensors to a device, and the images to a precision."""
        return Episodes(
            self.support_images.to(device, dtype),
            self.support_labels.to(device),
            self.query_images.to(device, dtype),
            self.query_labels.to(device),
            self.index,
            None if self.classes is None else self.classes.to(device),
        )

    def chunks(self, size: int) -> Iterator[Episodes]:
        """Yield the tasks in order, `size` at a time; the last chunk may be smaller.

        Raises:
            UserError: `size` is below 1.
        """
        if size < 1:
            raise UserError(f"Expected a chunk of at least 1 task, got {size}; raise it")
        return (self[start : start + size] for start in range(0, len(self), size))


def require_episode_numbers(index: int, tasks: int) -> None:
    """Refuse a batch that begins before episode 0 or has no tasks.

    Raises:
        UserError: `index` is negative, or `tasks` below 1.
    """
    if index < 0 or tasks < 1:
        raise UserError(
            f"Expected index >= 0 and tasks >= 1, got index {index} and tasks {tasks}; number episodes from 0"
        )


class EpisodeSource(Protocol):
    """Anything that draws episodes by number, such as `EpisodeSampler` or a class of your own."""

    def batch(self, index: int, tasks: int) -> Episodes:
        """Episodes number `index`, ..., `index + tasks - 1`."""


class SplitInfo(Protocol):
    """What a run must know of the data of one split; `FewShotDataset` is one."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""

    @property
    def split_hash(self) -> str:
        """16 hex digits that tell data apart."""

    @property
    def n_episode_classes(self) -> int | None:
        """Different classes that episodes have; None where they are not numbered."""


class SplitSampler(EpisodeSource, Protocol):
    """What a run draws the episodes of one split from; `EpisodeSampler` is one."""

    @property
    def dataset(self) -> SplitInfo:
        """The data."""

    def hash(self, index: int, tasks: int) -> str:
        """Identify these episodes by 16 hex digits."""

"""easyfsl's tasks as metakm's episodes. Needs nothing of easyfsl itself."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from metakm.data import Episodes
from metakm.data.episodes import require_episode_numbers
from metakm.data.rng import stream_key
from metakm.errors import UserError
from metakm.interop.generators import global_generators


class TaskLoaderSampler:
    """A data loader with easyfsl's `TaskSampler` as episodes: `batch` is that of `metakm.EpisodeSampler`.

    Each episode is drawn with Python's, numpy's and torch's global generators set from (seed, index) and restored
    afterwards, so that episode i depends only on the data, the sampler, the seed and i, in whatever order episodes are
    drawn. The sampler's `n_tasks` does not limit their number. The loader's workers are not used.

    Args:
        loader: `DataLoader(dataset, batch_sampler=sampler, collate_fn=sampler.episodic_collate_fn)` for a `TaskSampler`
            of at least one task. Images become float32 as they are, uint8 [0, 1].

    Attributes:
        ways, shots, queries: the sampler's.

    Raises:
        UserError: another loader, or tasks that differ between two draws.
    """

    def __init__(self, loader: Any, seed: int = 0) -> None:
        sampler = getattr(loader, "batch_sampler", None)
        numbers = [getattr(sampler, name, None) for name in ("n_way", "n_shot", "n_query")]
        if not all(isinstance(number, int) for number in numbers):
            raise UserError(
                "Expected a DataLoader whose batch_sampler is easyfsl's TaskSampler, got one with "
                f"{type(sampler).__name__}; pass the loader, with collate_fn=sampler.episodic_collate_fn"
            )
        self.loader, self.seed = loader, operator.index(seed)
        self.ways, self.shots, self.queries = (int(number) for number in numbers if number is not None)
        first, again = self._draw(0), self._draw(0)
        if not all(torch.equal(a, b) for a, b in zip(first, again, strict=True)):
            raise UserError(
                "Expected tasks that follow the global generators of random, numpy and torch, got two different ones "
                "from the same state; make the dataset's transform draw its random numbers from one of them"
            )

    def batch(self, index: int, tasks: int) -> Episodes:
        """Build episodes number `index`, ..., `index + tasks - 1`, on the CPU.

        Raises:
            UserError: `tasks` is below 1, `index` negative, or a task in another form.
        """
        require_episode_numbers(index, tasks)
        drawn = [self._draw(number) for number in range(index, index + tasks)]
        parts = [torch.stack(part) for part in zip(*drawn, strict=True)]
        return Episodes(parts[0], parts[1], parts[2], parts[3], range(index, index + tasks))

    def _draw(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Support images `[N*K, C, H, W]` and labels `[N*K]`, then those of the queries, class after class."""
        with global_generators(stream_key("metakm easyfsl 1", self.seed, index)):
            rows = next(iter(self.loader.batch_sampler))
            task = self.loader.collate_fn([self.loader.dataset[row] for row in rows])
        if not isinstance(task, tuple | list) or len(task) < 4 or not all(isinstance(p, Tensor) for p in task[:4]):
            raise UserError(
                "Expected support images and labels, query images and labels from the loader's collate_fn, got "
                f"{type(task).__name__}; pass collate_fn=sampler.episodic_collate_fn"
            )
        support = _by_class(task[0], task[1], self.ways, self.shots)
        return (*support, *_by_class(task[2], task[3], self.ways, self.queries))


def _by_class(images: Tensor, labels: Tensor, ways: int, each: int) -> tuple[Tensor, Tensor]:
    """Images `[n, C, H, W]` and labels `[n]`, sorted by label."""
    order = torch.argsort(labels, stable=True)
    wanted = torch.arange(ways).repeat_interleave(each)
    if images.dim() != 4 or not torch.equal(labels[order], wanted):
        raise UserError(
            f"Expected images [n, C, H, W] with {each} of each of {ways} labels, got {list(images.shape)} and "
            f"{labels.tolist()}; pass collate_fn=sampler.episodic_collate_fn"
        )
    unit = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    return unit[order], labels[order].long()

"""Several datasets in one run: their episodes alternate.

A run names them joined by `+`, such as `flowers+grocery-store`; on the command line they are words of their own.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from metakm.data.dataset import FewShotDataset
from metakm.data.episodes import Episodes, require_episode_numbers
from metakm.data.sampler import EpisodeSampler
from metakm.errors import UserError


@dataclass(frozen=True)
class AlternatingDatasets:
    """What a run asks of its dataset, for several that alternate.

    Raises:
        UserError: images of different shapes.
    """

    datasets: tuple[FewShotDataset, ...]

    def __post_init__(self) -> None:
        first = self.datasets[0]
        for other in self.datasets[1:]:
            if other.image_shape != first.image_shape:
                alike = other.image_shape[0] == first.image_shape[0]
                remedy = "give --image-size, or choose another" if alike else "choose another"
                raise UserError(
                    f"Expected datasets with images of one shape, got {list(first.image_shape)} of {first.name} and "
                    f"{list(other.image_shape)} of {other.name}; {remedy}"
                )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.datasets[0].image_shape

    @property
    def n_episode_classes(self) -> int:
        """Of all datasets."""
        return sum(dataset.n_episode_classes for dataset in self.datasets)

    @property
    def split_hash(self) -> str:
        """16 hex digits over those of the datasets, in their order."""
        return _digest(dataset.split_hash for dataset in self.datasets)


class AlternatingSampler:
    """Episode i is episode i of dataset number i modulo their number, whatever batch it is in.

    Episodes number their classes over all datasets, in the datasets' order.

    Raises:
        UserError: no samplers, or some that differ in ways, shots or queries, or in the shape of images.
    """

    def __init__(self, samplers: Sequence[EpisodeSampler]) -> None:
        sizes = sorted({(sampler.ways, sampler.shots, sampler.queries) for sampler in samplers})
        if len(sizes) != 1:
            raise UserError(
                f"Expected samplers of the same (ways, shots, queries), got {sizes or 'none'}; make them so"
            )
        self.samplers, self.ways = tuple(samplers), samplers[0].ways
        self.dataset = AlternatingDatasets(tuple(sampler.dataset for sampler in samplers))

    def batch(self, index: int, tasks: int) -> Episodes:
        """See `EpisodeSampler.batch`."""
        require_episode_numbers(index, tasks)
        parts = [self._episode(number) for number in range(index, index + tasks)]
        names = [field.name for field in dataclasses.fields(Episodes) if field.name != "index"]
        tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return Episodes(**tensors, index=range(index, index + tasks))

    def hash(self, index: int, tasks: int) -> str:
        """See `EpisodeSampler.hash`."""
        require_episode_numbers(index, tasks)
        numbers = range(index, index + tasks)
        return _digest(self.samplers[number % len(self.samplers)].hash(number, 1) for number in numbers)

    def _episode(self, number: int) -> Episodes:
        which = number % len(self.samplers)
        found = self.samplers[which].batch(number, 1)
        before = sum(sampler.dataset.n_episode_classes for sampler in self.samplers[:which])
        assert found.classes is not None, "EpisodeSampler numbers them"
        return dataclasses.replace(found, classes=found.classes + before)


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

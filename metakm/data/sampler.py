"""Episodes: few-shot tasks drawn from a dataset, each a pure function of (dataset, split, seed, index)."""

from __future__ import annotations

import hashlib
import json
import operator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from metakm.data.augmentation import pad_crop_flip
from metakm.data.dataset import FewShotDataset
from metakm.data.episodes import Episodes, require_episode_numbers
from metakm.data.rng import STREAMS, k_smallest, raw_words, stream_key
from metakm.errors import UserError

ROTATED_BYTES = 2**26
"""A dataset with rotations keeps its images in all four directions if one direction takes at most this many bytes."""


class Draw(NamedTuple):
    """What was drawn for T episodes: classes `[T, N]`, image rows `[T, N, K+Q]`, rotations in quarters `[T, N]`."""

    classes: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    rotations: npt.NDArray[np.int64]


_HASHED_WORDS = 2**22
"""Number of 8-byte words that `EpisodeSampler.hash` draws at a time, unless one episode needs more."""


class EpisodeSampler:
    """Draws N-way episodes with K support and Q query images per class.

    Episode i depends only on the dataset's name and split, the seed and i: not on its batch, earlier draws, global
    random state or the number of workers. Its classes, their rotations
    and its support images do not depend on `queries` either, and the first classes do not depend on `ways`.
    Support and query images are different images. If the dataset has rotations, each class of a task is
    rotated counter-clockwise by 0, 90, 180 or 270 degrees, both support and query.

    With `augment` each image, support and query, is cropped and mirrored at random (see `augmentation.py`). This
    has its own random stream, so the same images are drawn as without it, and it depends only on what is said above.

    Raises:
        UserError: the dataset has too few classes or images; a number is not positive; `augment` with a dataset that
            has rotations, or with a split other than "train".
    """

    def __init__(
        self, dataset: FewShotDataset, ways: int, shots: int, queries: int, seed: int = 0, augment: bool = False
    ) -> None:
        self.dataset, self.augment = dataset, augment
        given = (ways, shots, queries, seed)
        try:
            self.ways, self.shots, self.queries, self.seed = map(operator.index, given)
        except TypeError as error:
            raise UserError(f"Expected ways, shots, queries and seed to be whole numbers, got {given}") from error
        self._check()
        self._key = stream_key("metakm episode 1", dataset.name, dataset.split, self.seed)
        self._augmentation_key = stream_key("metakm augmentation 1", dataset.name, dataset.split, self.seed)
        self._words = dataset.n_classes + ways * (1 + int(dataset.counts.max()))  # of an episode's stream

    @property
    def _images(self) -> npt.NDArray[np.uint8]:
        """A memory map stays mapped. This is no attribute, or a pickle would hold the images twice."""
        return np.asarray(self.dataset.images)

    def batch(self, index: int, tasks: int) -> Episodes:
        """Build episodes number `index`, ..., `index + tasks - 1`, on the CPU.

        Memory: 5 bytes per pixel, four of which are kept. A dataset with rotations keeps its rotated images (see
        `ROTATED_BYTES`) from the first batch on.

        Raises:
            UserError: `tasks` is below 1 or `index` negative.
        """
        drawn = self.draw(index, tasks)
        support = self._pictures(drawn.rows[:, :, : self.shots], drawn.rotations)
        queries = self._pictures(drawn.rows[:, :, self.shots :], drawn.rotations)
        if self.augment:
            words = self._augmentation(index, tasks)
            support = pad_crop_flip(support, words[:, :, : self.shots])
            queries = pad_crop_flip(queries, words[:, :, self.shots :])
        return Episodes(
            _to_unit(support),
            self._labels(tasks, self.shots),
            _to_unit(queries),
            self._labels(tasks, self.queries),
            range(index, index + tasks),
            torch.from_numpy(drawn.rotations * self.dataset.n_classes + drawn.classes),  # [T, N]
        )

    def hash(self, index: int, tasks: int) -> str:
        """Identify these episodes by 16 hex digits: equal if and only if the same images take the same roles.

        An image is identified by its class and its position there, not by its pixels: sources of a dataset with
        the same classes and class sizes are equal. `augment` does not change the hash.

        Raises:
            UserError: as `batch`.
        """
        numbers = [self.seed, self.ways, self.shots, self.queries]
        header = json.dumps([self.dataset.split_hash, self.dataset.split, *numbers])
        digest = hashlib.sha256(header.encode())
        _check_numbers(index, tasks)
        at_once = max(1, _HASHED_WORDS // self._words)
        draws = [self.draw(i, min(at_once, index + tasks - i)) for i in range(index, index + tasks, at_once)]
        for parts in zip(*draws, strict=True):  # all classes, then all rows, then all rotations
            for part in parts:
                digest.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
        return digest.hexdigest()[:16]

    def draw(self, index: int, tasks: int) -> Draw:
        """Choose classes, images and rotations without reading an image.

        The words of an episode's stream are: one key per class of the dataset, then for each of the N classes
        one word for the rotation and one key per image (as many as the largest class has).

        Raises:
            UserError: as `batch`.
        """
        _check_numbers(index, tasks)
        counts = self.dataset.counts
        n_classes, largest = len(counts), int(counts.max())
        words = raw_words(self._key, range(index, index + tasks), self._words)
        classes = k_smallest(words[:, :n_classes], self.ways)  # [T, N]
        slots = words[:, n_classes:].reshape(tasks, self.ways, 1 + largest)
        keys = slots[..., 1:] >> np.uint64(1)
        if counts.min() < largest:
            keys[np.arange(largest) >= counts[classes][..., None]] = np.iinfo(np.uint64).max  # no such image
        picked = k_smallest(keys, self.shots + self.queries)  # [T, N, K+Q]
        rotations = (slots[..., 0] >> np.uint64(62)).astype(np.int64)
        if not self.dataset.rotations:
            rotations = np.zeros_like(rotations)
        return Draw(classes, self.dataset.offsets[classes][..., None] + picked, rotations)

    def _pictures(self, rows: npt.NDArray[np.int64], rotations: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Rows `[T, N, n]` and rotations in quarters `[T, N]` -> images as uint8 `[T, N, n, C, H, W]`."""
        if not self.dataset.rotations:
            return self._images.take(rows, axis=0)
        if self._images.nbytes <= ROTATED_BYTES:
            return self.dataset.rotated.take(rotations[..., None] * len(self._images) + rows, axis=0)
        pictures = self._images.take(rows, axis=0)
        for quarters in (1, 2, 3):
            chosen = rotations == quarters
            pictures[chosen] = np.rot90(pictures[chosen], quarters, axes=(-2, -1))
        return pictures

    def _augmentation(self, index: int, tasks: int) -> npt.NDArray[np.uint64]:
        """A random word per image, `[T, N, K+Q]`; those of a class do not depend on `ways` and `queries`."""
        largest = int(self.dataset.counts.max())
        words = raw_words(self._augmentation_key, range(index, index + tasks), self.ways * largest)
        return words.reshape(tasks, self.ways, largest)[:, :, : self.shots + self.queries]

    def _labels(self, tasks: int, each: int) -> Tensor:
        return torch.from_numpy(np.arange(self.ways).repeat(each)[None].repeat(tasks, axis=0))  # [T, N*each]

    def _check(self) -> None:
        for name in ("ways", "shots", "queries"):
            number = getattr(self, name)
            if number < 1:
                raise UserError(f"Expected {name} >= 1, got {number}; raise it")
        named = f"{self.dataset.name} {self.dataset.split}"
        if self.augment and self.dataset.rotations:
            raise UserError(f"Expected photographs with --augment, got {named}, which has characters; leave it out")
        if self.augment and self.dataset.split != "train":
            raise UserError(f"Expected the train split to augment, got {named}; test on images as they are")
        if self.ways > self.dataset.n_classes:
            raise UserError(
                f"Expected at most {self.dataset.n_classes} ways (the classes of {named}), got {self.ways}; lower ways"
            )
        least = int(self.dataset.counts.min())
        if self.shots + self.queries > least:
            raise UserError(
                f"Expected shots + queries <= {least} (the smallest class of {named}: "
                f"{self.dataset.class_names[int(self.dataset.counts.argmin())]}), "
                f"got {self.shots} + {self.queries}; lower one of them"
            )


def _to_unit(pictures: npt.NDArray[np.uint8]) -> Tensor:
    """Uint8 `[T, N, n, C, H, W]` -> float32 in [0, 1], `[T, N*n, C, H, W]`; in numpy, which wakes no torch thread."""
    tasks, ways, each, *shape = pictures.shape
    unit = pictures.astype(np.float32)
    unit /= np.float32(255)
    return torch.from_numpy(unit.reshape(tasks, ways * each, *shape))


def _check_numbers(index: int, tasks: int) -> None:
    require_episode_numbers(index, tasks)
    if index + tasks > STREAMS:
        raise UserError(f"Expected numbers below 2**64, got index {index} and tasks {tasks}; number episodes from 0")

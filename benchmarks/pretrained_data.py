"""Held-out classes of pretrained.py: images of one size, features of a base, and tasks drawn from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from metakm.data import EpisodeSampler, FewShotDataset, load_dataset
from metakm.data.dataset import offsets_of
from metakm.data.loading import data_roots
from metakm.data.splits import SPLITS
from metakm.errors import UserError, unknown_name
from metakm.experiments.classification import first_per_class, load_cifar10
from metakm.io.files import atomic_write
from metakm.models.pretrained import Pretrained
from metakm.photos.features import features
from metakm.photos.store import normalise

QUERIES = 10
_BATCH = 32
_CIFAR_IMAGES = 200  # of each class, the first of the test images


class Source(NamedTuple):
    """Classes to draw tasks from.

    ways: of the larger tasks, beside 5.
    splits: whose classes they are.
    seen: which of them the bases have been trained on, with ImageNet's weights.
    """

    title: str
    dataset: str
    ways: int
    splits: tuple[str, ...] = ("test",)
    seen: str = ""


_SOME_GROCERIES = "ImageNet's weights have seen some of these kinds, such as lemons and oranges"
_LIKE_DAISIES = "ImageNet's weights have seen daisies; one of these kinds, barbeton daisy, looks like them"
_SOME_FLOWERS = "ImageNet's weights have seen a few of these kinds: daisies and artichokes"
_THINGS = "ImageNet's weights have seen these kinds of things"
SOURCES = {
    "flowers": Source("Flowers-102, VGG-Flower's 16 test classes", "flowers", 16, seen=_LIKE_DAISIES),
    "grocery": Source("Grocery Store, 21 test classes", "grocery-store", 20, seen=_SOME_GROCERIES),
    "cifar10": Source("CIFAR-10, enlarged", "cifar10", 10, seen=_THINGS),
    "all-flowers": Source("Flowers-102, all classes", "flowers", 16, SPLITS, _SOME_FLOWERS),
    "all-grocery": Source("Grocery Store, all classes", "grocery-store", 20, SPLITS, _SOME_GROCERIES),
}


def check_names(flag: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raises UserError for the first of the names given with `flag` that is not known."""
    for name in given:
        if name not in known:
            raise unknown_name(flag, name, known)


def parse_base(given: str) -> tuple[str, str, list[str]]:
    """NAME=BASE=SOURCE,SOURCE as the name, the base and the sources that it is tested on.

    Raises:
        UserError: written otherwise, or an unknown source.
    """
    name, base, listed = [*given.split("="), "", ""][:3]
    if given.count("=") != 2 or not (name and base and listed):
        raise UserError(
            f"Expected --bases as NAME=BASE=SOURCE,SOURCE, got {given!r}; for example mine=results/a/seed0=cifar10"
        )
    check_names(f"the sources of {name}", sources := listed.split(","), SOURCES)
    return name, base, sources


def load_source(name: str, side: int) -> FewShotDataset:
    """The images of a source, as squares of `side` pixels; CIFAR-10's are enlarged from 32.

    Raises:
        UserError: an unknown name, or data that are missing.
    """
    check_names("source", [name], SOURCES)
    source = SOURCES[name]
    if source.dataset == "cifar10":
        return _cifar10(side)
    parts = [load_dataset(source.dataset, split, image_size=side) for split in source.splits]
    names = tuple(each for part in parts for each in part.class_names)
    counts = np.concatenate([part.counts for part in parts])
    images = np.concatenate([part.images for part in parts]) if len(parts) > 1 else parts[0].images
    return dataclasses.replace(
        parts[0], name=name, split="test", images=images, class_names=names, offsets=offsets_of(counts)
    )


def _cifar10(side: int) -> FewShotDataset:
    part = first_per_class(load_cifar10(32, data_roots()).test, _CIFAR_IMAGES)
    small = torch.from_numpy(np.array(part.images)).float()
    large = F.interpolate(small, size=(side, side), mode="bicubic", align_corners=False)
    images = large.round().clamp(0, 255).to(torch.uint8).numpy()
    return dataclasses.replace(part, images=images)


def cached_features(base: Pretrained, dataset: FewShotDataset, path: Path) -> Tensor:
    """Features `[M, D]` of all images of a dataset, computed once, into `path`."""
    if not path.is_file():
        wanted = dataclasses.replace(base.preprocessing, size=dataset.image_shape[-1])
        batches = (
            normalise(torch.from_numpy(np.array(dataset.images[first : first + _BATCH])), wanted)
            for first in range(0, len(dataset.images), _BATCH)
        )
        found = features(base.network, base.classifier, batches)
        with atomic_write(path) as file:
            np.save(file, found.numpy().astype(np.float32))
    found_before: npt.NDArray[np.float32] = np.load(path)
    return torch.from_numpy(found_before)


class Task(NamedTuple):
    """Rows of the dataset: of the support images `[N*K]` and of the queries `[N*Q]`, class after class."""

    support: npt.NDArray[np.int64]
    queries: npt.NDArray[np.int64]


def draw_tasks(dataset: FewShotDataset, ways: int, shots: int, count: int) -> tuple[list[Task], str]:
    """The first tasks of the source, the same for every base, size and method, and their hash."""
    sampler = EpisodeSampler(dataset, ways, shots, QUERIES)
    rows = sampler.draw(0, count).rows  # [T, N, K+Q]
    tasks = [Task(each[:, :shots].reshape(-1), each[:, shots:].reshape(-1)) for each in rows]
    return tasks, sampler.hash(0, count)

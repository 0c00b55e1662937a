"""Flowers-102 and Grocery Store with their official splits, as squares of pixels, and draws of support images."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from metakm.data.archives import Source, TarSource
from metakm.data.flowers import list_flowers
from metakm.data.grocery_store import list_groceries
from metakm.errors import UserError, unknown_name
from metakm.io.files import atomic_write
from metakm.models.pretrained import Preprocessing
from metakm.photos.reading import square
from metakm.photos.store import PhotoStore

TRAIN, VALIDATION, TEST = 0, 1, 2
SIDES = {"flowers": 96, "grocery": 128}
"""Pixels of the images: Flowers-102 is stored at 64 and enlarged, Grocery Store at 128."""
_ARCHIVES = {
    "flowers": "flowers-102/flowers-102-64px.tar.xz",
    "grocery": "grocery-store/grocery-store-128.tar.xz",
}
_TUNING_IMAGES = 10
"""Of each class, where candidates for all images are compared."""


@dataclass(frozen=True)
class Images:
    """A dataset: pixels uint8 `[n, S, S, 3]`, labels `[n]`, and the official part of each, `[n]`."""

    name: str
    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    parts: npt.NDArray[np.int64]

    def store(self, numbers: npt.NDArray[np.int64], preprocessing: Preprocessing) -> PhotoStore:
        """Some images, as `metakm.fit` reads them; its numbers are in the order of the classes."""
        labels = self.labels[numbers]
        found = {f"{label:04d}": list(self.pixels[numbers[labels == label]]) for label in np.unique(labels)}
        return PhotoStore(found, preprocessing)


@dataclass(frozen=True)
class Draw:
    """Numbers of the images to fit to, and of those that are then classified."""

    support: npt.NDArray[np.int64]
    queries: npt.NDArray[np.int64]


def draw(images: Images, shots: str, number: str, ways: int = 20) -> Draw:
    """Support and query images.

    Support images are official training and validation images, queries the test images of the same classes. The draw
    `tune` takes both from training and validation images. A draw has the same classes for any number of shots, and its
    5 support images of a class are among its 10.

    Args:
        shots: support images of each of `ways` classes; `all` takes all images of all classes.
        number: `tune`, or the number of a draw that is reported.
    """
    tune, open_parts = number == "tune", images.parts != TEST
    if shots == "all":
        if not tune:
            return Draw(np.flatnonzero(open_parts), np.flatnonzero(~open_parts))
        train = np.flatnonzero(images.parts == TRAIN)
        few = [train[images.labels[train] == label][:_TUNING_IMAGES] for label in np.unique(images.labels)]
        return Draw(np.concatenate(few), np.flatnonzero(images.parts == VALIDATION))
    generator = np.random.default_rng(zlib.crc32(f"{images.name} {number}".encode()))
    support, queries = [], []
    for label in sorted(generator.permutation(np.unique(images.labels))[:ways]):
        own = generator.permutation(np.flatnonzero((images.labels == label) & open_parts))
        if len(own) <= int(shots):
            raise UserError(f"Expected more than {shots} images of class {label}, got {len(own)}; take fewer shots")
        support.append(own[: int(shots)])
        rest = own[int(shots) :]
        queries.append(rest if tune else np.flatnonzero((images.labels == label) & ~open_parts))
    return Draw(np.concatenate(support), np.concatenate(queries))


def load_images(name: str, data: Path, cache: Path) -> Images:
    """A dataset; decoded once, into `cache`.

    Raises:
        UserError: an unknown name, or the archive is missing.
    """
    if name not in SIDES:
        raise unknown_name("dataset", name, SIDES)
    path = cache / f"{name}-{SIDES[name]}.npz"
    if not path.is_file():
        archive = data / _ARCHIVES[name]
        if not archive.is_file():
            raise UserError(f"Expected {_ARCHIVES[name]} in {data}, got no such file; set METAKM_DATA to its folder")
        read = _flowers if name == "flowers" else _groceries
        pixels, labels, parts = zip(*read(TarSource(archive), SIDES[name]), strict=True)
        with atomic_write(path) as file:
            np.savez(file, pixels=np.stack(pixels), labels=np.array(labels), parts=np.array(parts))
    with np.load(path) as held:
        return Images(name, held["pixels"], held["labels"], held["parts"])


_Row = tuple[npt.NDArray[np.uint8], int, int]


def _flowers(source: Source, side: int) -> Iterator[_Row]:
    """In the order of the images' numbers."""
    with source.reader() as read:
        for member, label, part in list_flowers(source):
            yield _decoded(read(member.name), side), label - 1, part


def _groceries(source: Source, side: int) -> Iterator[_Row]:
    """In the order of the official lists."""
    with source.reader() as read:
        for member, label, part in list_groceries(source):
            yield _decoded(read(member.name), side), label, part


def _decoded(content: bytes, side: int) -> npt.NDArray[np.uint8]:
    """uint8 `[S, S, 3]`."""
    return square(Image.open(io.BytesIO(content)), side, "bicubic").transpose(1, 2, 0)

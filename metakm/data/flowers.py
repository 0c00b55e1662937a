"""Flowers-102: 102 kinds of flowers, 40 to 258 photographs each, split 71 / 15 / 16 as "VGG Flower" of Meta-Dataset.

Nilsback & Zisserman, "Automated flower classification over a large number of classes", ICVGIP 2008. The split is that
of Triantafillou et al., "Meta-Dataset", ICLR 2020 (`vgg_flower_splits.json` of its code), by the numbers that
`imagelabels.mat` gives the classes, from 1 to 102. Of a class all images are used, whatever part of the dataset's own
division into training, validation and test images they are in.

torchvision's layout is read: `flowers-102/` with `jpg/image_00001.jpg` and so on, `imagelabels.mat` and `setid.mat`; or
the same, reduced to 64x64, in `flowers-102-64px.tar.xz`. Images are resized to a square with LANCZOS, without keeping
their proportions.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metakm.data.archives import Member, Source, fingerprint, require_source
from metakm.data.cache import CachePlan, Entry, cached
from metakm.data.dataset import FewShotDataset
from metakm.data.decode import decode_classes
from metakm.data.registry import register_dataset
from metakm.errors import UserError

VERSION = "flowers 1"  # raise it when decoding changes
SIDE = 84
CLASSES = 102
VALIDATION = frozenset({10, 16, 17, 23, 26, 47, 53, 56, 57, 62, 82, 83, 86, 97, 102})
TEST = frozenset({5, 9, 15, 19, 35, 40, 41, 42, 45, 46, 65, 85, 89, 94, 96, 98})
"""Classes of the published split; the others are for training."""
NAMES = ("flowers-102-64px.tar.xz", "flowers-102")
PARTS = ("trnid", "valid", "tstid")
"""The official training, validation and test images, as `setid.mat` calls them."""
_IMAGE = re.compile(r"flowers-102/jpg/image_(\d{5})\.jpg")


class Flower(NamedTuple):
    """A photograph: its class from 1 to 102, and its official part, an index of `PARTS`."""

    member: Member
    label: int
    part: int


@register_dataset("flowers", title="Flowers-102", family="photographs", ways=5, resized=True)
def load_flowers(split: str, roots: Sequence[Path], side: int = SIDE) -> FewShotDataset:
    """Load a split; only its own images are decoded, to `[3, side, side]`. A class is named by its number.

    Looks in each root for `flowers-102/` and the root itself, and there for the archive, else for the folder.

    Raises:
        UserError: the data are missing, damaged or incomplete.
    """
    source = find_flowers(roots)
    entry = Entry("flowers", split, rotations=False, fingerprint=fingerprint(f"{VERSION} {side}", [source]))
    return cached(entry, lambda: _plan(split, source, side))


def find_flowers(roots: Sequence[Path]) -> Source:
    """The archive or folder of the data; raises UserError if there is none."""
    remedy = (
        "with network access, fetch it with torchvision.datasets.Flowers102(<folder>, download=True) and give "
        "--data-root <folder>"
    )
    return require_source(roots, "flowers-102", NAMES, remedy)


def split_of(label: int) -> str:
    """The split of a class by its number, from 1 to 102."""
    return "test" if label in TEST else "val" if label in VALIDATION else "train"


def list_flowers(source: Source) -> list[Flower]:
    """All photographs, in the order of their numbers.

    Raises:
        UserError: tables that are missing or damaged, or that do not fit the images.
    """
    images = {int(match[1]): name for name in source.names() if (match := _IMAGE.fullmatch(name))}
    with source.reader() as read:
        labels = _column(_table(read("flowers-102/imagelabels.mat"), source), "labels", source)
        parts = _table(read("flowers-102/setid.mat"), source)
    part_of = {number: part for part, key in enumerate(PARTS) for number in _column(parts, key, source)}
    numbers = range(1, len(labels) + 1)
    if sorted(images) != [*numbers] or sorted(part_of) != [*numbers] or set(labels) != {*range(1, CLASSES + 1)}:
        raise UserError(
            f"Expected images from 1 on, each with a part and one of {CLASSES} classes, got {len(images)} images, "
            f"{len(part_of)} with a part and {len(labels)} labels of {len(set(labels))} classes in {source.path}; "
            "fetch Flowers-102 again"
        )
    return [Flower(Member(source, images[n]), labels[n - 1], part_of[n]) for n in numbers]


def _plan(split: str, source: Source, side: int) -> CachePlan:
    found: dict[str, dict[str, list[Member]]] = {"train": {}, "val": {}, "test": {}}
    for flower in sorted(list_flowers(source), key=lambda flower: flower.label):
        found[split_of(flower.label)].setdefault(f"{flower.label:03d}", []).append(flower.member)
    classes = {key: [(name, len(members)) for name, members in own.items()] for key, own in found.items()}
    wanted = [*found[split].values()]
    return CachePlan(classes, (3, side, side), lambda: decode_classes(wanted, "RGB", side))


def _table(content: bytes, source: Source) -> dict[str, Any]:
    from scipy.io import loadmat  # imported late: slow, and rarely needed

    try:
        table: dict[str, Any] = loadmat(io.BytesIO(content))
    except Exception as error:  # a damaged table may raise anything
        raise UserError(f"Expected MATLAB's tables, got {error!r} from {source.path}; fetch it again") from error
    return table


def _column(table: dict[str, Any], key: str, source: Source) -> list[int]:
    found = np.asarray(table.get(key))
    if found.size and found.dtype.kind not in "iu":
        raise UserError(
            f"Expected whole numbers as {key} in the tables of {source.path}, got {found.dtype}; fetch it again"
        )
    return [int(number) for number in found.ravel()]

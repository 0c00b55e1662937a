"""Grocery Store: 5,421 phone photographs of 81 kinds of fruit, vegetables and packages, split 40 / 20 / 21.

Klasson, Zhang, Kjellström, "A Hierarchical Grocery Store Image Dataset with Visual and Semantic Labels", WACV 2019. Its
own division is of images, not of classes; there is no published few-shot split. Here the class numbers divide it:
2 or 3 modulo 4 is meta-train, 1 meta-val, 0 meta-test. Numbers follow the hierarchy, so that each split has fruit,
vegetables and packages, and test classes have relatives in training. Of a class all images are used.

The layout of its repository is read, `train.txt`, `val.txt` and `test.txt` (`path, class, coarse class`) and the images
that they name: in `grocery-store-128.tar.xz` (short sides of 128 pixels), or a folder `grocery-store` or
`GroceryStoreDataset/dataset`. Images are resized to a square with LANCZOS, without keeping their proportions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from metakm.data.archives import Member, Read, Source, fingerprint, require_source
from metakm.data.cache import CachePlan, Entry, cached
from metakm.data.dataset import FewShotDataset
from metakm.data.decode import decode_classes
from metakm.data.registry import register_dataset
from metakm.errors import UserError

VERSION = "grocery-store 1"  # raise it when decoding changes
SIDE = 84
CLASSES = 81
NAMES = ("grocery-store-128.tar.xz", "grocery-store", "GroceryStoreDataset/dataset")
LISTS = ("train.txt", "val.txt", "test.txt")
"""The official training, validation and test images."""
_SPLITS = ("test", "val", "train", "train")
_LINE = re.compile(r"\s*([^,\s][^,]*?)\s*,\s*(\d{1,3})\s*,\s*\d{1,3}\s*")


class Grocery(NamedTuple):
    """A photograph: its class from 0 to 80, and its official part, an index of `LISTS`."""

    member: Member
    label: int
    part: int


@register_dataset("grocery-store", title="Grocery Store", family="photographs", ways=5, resized=True)
def load_grocery_store(split: str, roots: Sequence[Path], side: int = SIDE) -> FewShotDataset:
    """Load a split; only its own images are decoded, to `[3, side, side]`. A class is named `<number> <folder>`.

    Looks in each root for `grocery-store/` and the root itself, and there for the archive, else for the folders.

    Raises:
        UserError: the data are missing, damaged or incomplete.
    """
    source = find_groceries(roots)
    entry = Entry("grocery-store", split, rotations=False, fingerprint=fingerprint(f"{VERSION} {side}", [source]))
    return cached(entry, lambda: _plan(split, source, side))


def find_groceries(roots: Sequence[Path]) -> Source:
    """The archive or folder of the data; raises UserError if there is none."""
    remedy = "clone https://github.com/marcusklasson/GroceryStoreDataset and set METAKM_DATA to the folder around it"
    return require_source(roots, "grocery-store", NAMES, remedy)


def split_of(label: int) -> str:
    """The split of a class by its number, from 0 to 80."""
    return _SPLITS[label % 4]


def list_groceries(source: Source) -> list[Grocery]:
    """All photographs, in the order of the official lists.

    Raises:
        UserError: lists that are missing or damaged, or that do not fit the images.
    """
    inside = {name.partition("/")[2]: name for name in source.names()}
    with source.reader() as read:
        found = [each for part in range(len(LISTS)) for each in _listed(part, source, inside, read)]
    _check(found, source)
    return found


def _listed(part: int, source: Source, inside: Mapping[str, str], read: Read) -> Iterator[Grocery]:
    """One list. `inside` gives the names in the source."""
    file = LISTS[part]
    if file not in inside:
        raise UserError(f"Expected {file} in {source.path}, got none; fetch Grocery Store again")
    for line in read(inside[file]).decode("utf-8-sig", errors="replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None or match[1] not in inside:
            raise UserError(
                f"Expected lines of an image's path, class and coarse class in {file} of {source.path}, got "
                f"{line!r:.100}; fetch Grocery Store again"
            )
        yield Grocery(Member(source, inside[match[1]]), int(match[2]), part)


def _check(found: Sequence[Grocery], source: Source) -> None:
    labels, images = {each.label for each in found}, {each.member.name for each in found}
    if labels != {*range(CLASSES)} or len(images) != len(found):
        raise UserError(
            f"Expected {CLASSES} classes, and each image once, got {len(labels)} classes and {len(images)} images on "
            f"{len(found)} lines in {source.path}; fetch Grocery Store again"
        )


def _plan(split: str, source: Source, side: int) -> CachePlan:
    members: dict[int, list[Member]] = {label: [] for label in range(CLASSES)}
    for each in list_groceries(source):
        members[each.label].append(each.member)
    classes: dict[str, list[tuple[str, int]]] = {"train": [], "val": [], "test": []}
    for label, own in members.items():
        classes[split_of(label)].append((f"{label:02d} {PurePosixPath(own[0].name).parent.name}", len(own)))
    wanted = [own for label, own in members.items() if split_of(label) == split]
    return CachePlan(classes, (3, side, side), lambda: decode_classes(wanted, "RGB", side))

"""CUB-200-2011: 200 kinds of birds, 41 to 60 photographs each, split 100 / 50 / 50.

Wah, Branson, Welinder, Perona, Belongie, "The Caltech-UCSD Birds-200-2011 Dataset", 2011. The split is that of Chen,
Liu, Kira, Wang, Huang, "A Closer Look at Few-shot Classification", ICLR 2019, as their code makes it: counted from 0,
class i is for training where i is even, for validation where i % 4 is 1, for the test where it is 3. Of a class all
images are used, whole, without the bounding boxes.

The official layout is read, unpacked: `CUB_200_2011/` with `images.txt` and `images/<number>.<name>/*.jpg`. Images are
resized to a square with LANCZOS, without keeping their proportions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from metakm.data.archives import FolderSource, Member, fingerprint, missing, unwrap_folder
from metakm.data.cache import CachePlan, Entry, cached
from metakm.data.dataset import FewShotDataset
from metakm.data.decode import decode_classes
from metakm.data.registry import register_dataset
from metakm.errors import UserError

VERSION = "cub 1"  # raise it when decoding changes
SIDE = 84
CLASSES = 200
FOLDER = "CUB_200_2011"
_SPLITS = ("train", "val", "train", "test")
_LINE = re.compile(r"\d+ ((\d{3})\.[^/]+)/([^/]+\.jpg)")


@register_dataset("cub", title="CUB-200-2011", family="photographs", ways=5, resized=True)
def load_cub(split: str, roots: Sequence[Path], side: int = SIDE) -> FewShotDataset:
    """Load a split; only its own images are decoded, to `[3, side, side]`. A class is named as its folder.

    Looks in each root for `CUB_200_2011/`, also in `cub/`.

    Raises:
        UserError: the data are missing, damaged or incomplete.
    """
    folders = [root / sub / FOLDER for root in roots for sub in (".", "cub")]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise missing(
            f"{FOLDER}/",
            [folder.parent for folder in folders],
            "fetch CUB-200-2011 (CUB_200_2011.tgz), unpack it there",
        )
    source = FolderSource(unwrap_folder(folder))
    entry = Entry("cub", split, rotations=False, fingerprint=fingerprint(f"{VERSION} {side}", [source]))
    return cached(entry, lambda: _plan(split, source, side))


def split_of(number: int) -> str:
    """The split of a class by its number in the data, from 1 to 200."""
    return _SPLITS[(number - 1) % 4]


def _plan(split: str, source: FolderSource, side: int) -> CachePlan:
    members = _members(source)
    classes: dict[str, list[tuple[str, int]]] = {"train": [], "val": [], "test": []}
    for name, own in members.items():
        classes[split_of(int(name[:3]))].append((name, len(own)))
    wanted = [own for name, own in members.items() if split_of(int(name[:3])) == split]
    return CachePlan(classes, (3, side, side), lambda: decode_classes(wanted, "RGB", side))


def _members(source: FolderSource) -> dict[str, list[Member]]:
    """The images of each class, both in the order of their names."""
    present, table = set(source.names()), f"{FOLDER}/images.txt"
    if table not in present:
        raise UserError(f"Expected images.txt in {source.path}, got none; unpack CUB_200_2011.tgz again")
    with source.reader() as read:
        lines = read(table).decode("utf-8-sig", errors="replace").splitlines()
    found: dict[str, list[Member]] = {}
    for line in lines:
        match = _LINE.fullmatch(line.strip())
        name = f"{FOLDER}/images/{match[1]}/{match[3]}" if match else ""
        if match is None or name not in present:
            raise UserError(
                f"Expected lines of a number and an image's path in images.txt of {source.path}, got {line!r:.100}; "
                "unpack CUB_200_2011.tgz again"
            )
        found.setdefault(match[1], []).append(Member(source, name))
    numbers = [int(name[:3]) for name in sorted(found)]
    if numbers != [*range(1, CLASSES + 1)]:
        raise UserError(
            f"Expected classes 1 to {CLASSES} in images.txt of {source.path}, got {len(numbers)} of them; unpack "
            "CUB_200_2011.tgz again"
        )
    return {name: sorted(found[name], key=lambda member: member.name) for name in sorted(found)}

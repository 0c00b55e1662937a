"""mini-ImageNet: 100 classes of ImageNet, 600 photographs each, 84x84, split 64 / 16 / 20.

Vinyals et al., "Matching Networks for One Shot Learning", NeurIPS 2016; the split is that of Ravi & Larochelle,
"Optimization as a Model for Few-Shot Learning", ICLR 2017. It may not be passed on, so nothing is downloaded. Both
forms in circulation are read:

- `images/*.jpg` with `train.csv`, `val.csv`, `test.csv` (columns filename, label), resized to 84x84 by LANCZOS;
- `mini-imagenet-cache-{train,val,test}.pkl`: a dict of `image_data`, uint8 [M, 84, 84, 3], and `class_dict`, class
  name -> list of row numbers.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from metakm.data.cache import Entry, Plan, cached
from metakm.data.dataset import FewShotDataset
from metakm.data.labels import as_text
from metakm.data.pickles import read_pickle
from metakm.data.pictures import decode_classes
from metakm.data.sources import FolderSource, Member, fingerprint, missing, unnested
from metakm.data.splits import SPLITS, check_disjoint
from metakm.errors import UserError

VERSION = "mini-imagenet 1"  # raise it when decoding changes
SIDE = 84


def load_mini_imagenet(split: str, roots: Sequence[Path]) -> FewShotDataset:
    """Load a split.

    Looks in each root for `mini-imagenet/` and the root itself, and there for one of the two forms, the files of
    all three splits.
    Raises UserError if the data are missing or damaged.
    """
    folders = [root / sub for root in roots for sub in ("mini-imagenet", ".")]
    for folder in folders:
        tables = {key: folder / f"{key}.csv" for key in SPLITS}
        pickles = {key: folder / f"mini-imagenet-cache-{key}.pkl" for key in SPLITS}
        if (folder / "images").is_dir() and all(path.is_file() for path in tables.values()):
            images = FolderSource(unnested(folder / "images"))
            stamp = fingerprint(VERSION, [images], tables.values())
            return cached(_entry(split, stamp), partial(_plan_tables, split, tables, images))
        if all(path.is_file() for path in pickles.values()):
            stamp = fingerprint(VERSION, [], pickles.values())
            return cached(_entry(split, stamp), partial(_plan_pickles, split, pickles))
    raise missing(
        "images/ with train.csv, val.csv and test.csv, or mini-imagenet-cache-{train,val,test}.pkl,",
        folders,
        "ask for mini-ImageNet where you may (it cannot be downloaded here) and set METAKM_DATA to its folder",
    )


def _entry(split: str, stamp: str) -> Entry:
    return Entry("mini-imagenet", split, rotations=False, fingerprint=stamp)


def _plan_tables(split: str, tables: dict[str, Path], images: FolderSource) -> Plan:
    members = {key: _table(path, images) for key, path in tables.items()}
    check_disjoint(members, images.path.parent, "fetch the tables again")
    _check_once(tables, [m.name for found in members.values() for own in found.values() for m in own])
    classes = {key: [(name, len(found[name])) for name in sorted(found)] for key, found in members.items()}
    wanted = [members[split][name] for name, _ in classes[split]]
    return Plan(classes, (3, SIDE, SIDE), lambda: decode_classes(wanted, "RGB", SIDE))


def _table(path: Path, images: FolderSource) -> dict[str, list[Member]]:
    """Read a CSV of file names and labels: the images of each class, in the order of the table."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # Excel writes a byte-order mark
            rows = [(row["filename"], row["label"]) for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        raise UserError(f"Expected columns filename and label, got {error!r} in {path}; fetch it again") from error
    found: dict[str, list[Member]] = {}
    for name, label in rows:
        if not name or not label or "/" in name or "\\" in name:
            raise UserError(f"Expected a file name and a label, got {name!r}, {label!r} in {path}; mend the table")
        found.setdefault(label, []).append(Member(images, f"images/{name}"))
    if not found:
        raise UserError(f"Expected rows of filename and label, got none in {path}; fetch it again")
    return found


def _check_once(tables: dict[str, Path], names: Sequence[str]) -> None:
    """An image listed twice could be support and query of one episode."""
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise UserError(
            f"Expected every image once in {', '.join(str(path) for path in tables.values())}, got {twice} twice; "
            "fetch the tables again"
        )


def _plan_pickles(split: str, pickles: dict[str, Path]) -> Plan:
    classes: dict[str, list[tuple[str, int]]] = {}
    for key, path in pickles.items():
        _, rows = _pickle(path)
        classes[key] = [(name, len(rows[name])) for name in sorted(rows)]
    check_disjoint({key: dict(own) for key, own in classes.items()}, pickles[split].parent, "fetch them again")

    def arrays() -> Iterator[npt.NDArray[np.uint8]]:
        pictures, rows = _pickle(pickles[split])
        return (pictures[rows[name]].transpose(0, 3, 1, 2) for name, _ in classes[split])

    return Plan(classes, (3, SIDE, SIDE), arrays)


def _pickle(path: Path) -> tuple[npt.NDArray[np.uint8], dict[str, list[int]]]:
    """Read images `[M, 84, 84, 3]` and the rows of each class."""
    read: Any = read_pickle(path)
    try:
        data = {as_text(key): value for key, value in read.items()}
        images = np.asarray(data["image_data"])
        rows = {as_text(name): _rows(found) for name, found in data["class_dict"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise _unlike(path, repr(error)) from error
    if images.dtype != np.uint8 or images.shape[1:] != (SIDE, SIDE, 3):
        raise _unlike(path, f"image_data {images.dtype} {list(images.shape)}")
    if not rows or not all(found and min(found) >= 0 and max(found) < len(images) for found in rows.values()):
        raise _unlike(path, f"a class_dict without classes, or with rows outside 0..{len(images) - 1}")
    listed = [row for found in rows.values() for row in found]
    if len(set(listed)) != len(listed):
        raise _unlike(path, "a row twice in class_dict")
    return images, rows


def _rows(found: Any) -> list[int]:
    listed = sorted(found) if isinstance(found, set | frozenset) else np.asarray(found).tolist()
    return [int(row) for row in listed]


def _unlike(path: Path, got: str) -> UserError:
    return UserError(
        f"Expected a dict of image_data, uint8 [M, {SIDE}, {SIDE}, 3], and class_dict, name -> rows, "
        f"got {got} in {path}; fetch it again"
    )

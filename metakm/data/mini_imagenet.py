"""mini-ImageNet: 100 classes of ImageNet, 600 photographs each, 84x84, split 64 / 16 / 20.

Vinyals et al., "Matching Networks for One Shot Learning", NeurIPS 2016; the split is that of Ravi & Larochelle,
"Optimization as a Model for Few-Shot Learning", ICLR 2017. It may not be redistributed, so nothing is downloaded.
Three forms are read:

- `images/*.jpg` with `train.csv`, `val.csv`, `test.csv` (columns filename, label);
- `mini-imagenet-train.tar.xz` and `mini-imagenet-val-test.tar.xz`, with these files below `mini-imagenet/`, each with
  all three tables and the images of its splits;
- `mini-imagenet-cache-{train,val,test}.pkl`: a dict of `image_data`, uint8 [M, 84, 84, 3], and `class_dict`, class
  name -> list of row numbers.

Images of another size are resized to a square with LANCZOS, without keeping their proportions.

As published, it has 8 pairs of byte-identical images, 7 of them of two classes: 2 pairs within train (one of two
classes), 6 of a train and a val image, none with a test image.
"""

from __future__ import annotations

import csv
import io
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from metakm.data.archives import FolderSource, Member, Source, TarSource, fingerprint, missing, unwrap_folder
from metakm.data.cache import CachePlan, Entry, cached
from metakm.data.dataset import FewShotDataset
from metakm.data.decode import decode_classes, resized
from metakm.data.labels import as_text
from metakm.data.pickles import read_pickle
from metakm.data.registry import register_dataset
from metakm.data.splits import SPLITS, Classes, check_disjoint, split_hash
from metakm.errors import UserError

VERSION = "mini-imagenet 1"  # raise it when decoding changes
SIDE = 84
ARCHIVES = {
    "train": "mini-imagenet-train.tar.xz",
    "val": "mini-imagenet-val-test.tar.xz",
    "test": "mini-imagenet-val-test.tar.xz",
}
PUBLISHED = "1de524a5f7c08cdc"
"""The `split_hash` of the published data: 38,400, 9,600 and 12,000 images."""
_log = logging.getLogger(__name__)


@register_dataset("mini-imagenet", title="mini-ImageNet", family="photographs", ways=5, resized=True)
def load_mini_imagenet(split: str, roots: Sequence[Path], side: int = SIDE) -> FewShotDataset:
    """Load a split, as images `[3, side, side]`.

    Looks in each root for `mini-imagenet/` and the root itself, and there for one of the three forms, the files of
    all three splits. From the archives, val and test are decoded together because they share one.

    Raises:
        UserError: the data are missing or damaged.
    """
    folders = [root / sub for root in roots for sub in ("mini-imagenet", ".")]
    version = f"{VERSION} {side}"
    for folder in folders:
        tables = {key: folder / f"{key}.csv" for key in SPLITS}
        archives = {name: TarSource(folder / name) for name in ARCHIVES.values()}
        pickles = {key: folder / f"mini-imagenet-cache-{key}.pkl" for key in SPLITS}
        if (folder / "images").is_dir() and all(path.is_file() for path in tables.values()):
            images = FolderSource(unwrap_folder(folder / "images"))
            stamp = fingerprint(version, [images], tables.values())
            return cached(_entry(split, stamp), partial(_plan_folder, split, side, tables, images))
        if all(source.path.is_file() for source in archives.values()):
            stamp = fingerprint(version, archives.values())
            return cached(_entry(split, stamp), partial(_plan_archives, split, side, archives))
        if all(path.is_file() for path in pickles.values()):
            stamp = fingerprint(version, [], pickles.values())
            return cached(_entry(split, stamp), partial(_plan_pickles, split, side, pickles))
    raise _missing(folders)


def _missing(folders: Sequence[Path]) -> UserError:
    """Build the error for missing data, or for one missing archive."""
    for folder in folders:
        there, absent = (
            [name for name in sorted(set(ARCHIVES.values())) if (folder / name).is_file() == found]
            for found in (True, False)
        )
        if there:
            return UserError(f"Expected {absent[0]} beside {folder / there[0]}, got none; fetch it too")
    return missing(
        "images/ with train.csv, val.csv and test.csv, or mini-imagenet-train.tar.xz with "
        "mini-imagenet-val-test.tar.xz, or mini-imagenet-cache-{train,val,test}.pkl,",
        folders,
        "get mini-ImageNet from a source that may share it (it cannot be downloaded here), and set METAKM_DATA to "
        "its folder",
    )


def _entry(split: str, stamp: str) -> Entry:
    return Entry("mini-imagenet", split, rotations=False, fingerprint=stamp)


class _Table(NamedTuple):
    """A CSV file of file names and labels, its source, and the images that it lists: `<folder><file name>`."""

    data: bytes
    where: str
    images: Source
    folder: str


def _plan_folder(split: str, side: int, paths: Mapping[str, Path], images: FolderSource) -> CachePlan:
    try:
        tables = {key: _Table(path.read_bytes(), str(path), images, "images/") for key, path in paths.items()}
    except OSError as error:
        raise UserError(f"Expected tables that can be read, got {error}; fetch them again") from error
    return _plan_tables(split, side, tables)


def _plan_archives(split: str, side: int, archives: Mapping[str, TarSource]) -> CachePlan:
    names = {key: f"mini-imagenet/{key}.csv" for key in SPLITS}
    found = {archive: source.first(names.values()) for archive, source in archives.items()}
    first, *others = found.values()
    if any(other != first for other in others):
        places = " and ".join(str(source.path) for source in archives.values())
        raise UserError(f"Expected the same tables in {places}, got different ones; fetch both again")
    tables = {}
    for key, archive in ARCHIVES.items():
        source = archives[archive]
        where = f"{source.path}: {names[key]}"
        tables[key] = _Table(found[archive][names[key]], where, source, "mini-imagenet/images/")
    also = tuple(key for key in SPLITS if key != split and ARCHIVES[key] == ARCHIVES[split])
    return _plan_tables(split, side, tables, also)


def _plan_tables(split: str, side: int, tables: Mapping[str, _Table], also: tuple[str, ...] = ()) -> CachePlan:
    members = {key: _members(table) for key, table in tables.items()}
    check_disjoint(members, ", ".join(table.where for table in tables.values()), "fetch the tables again")
    _check_once(tables, [m.name for found in members.values() for own in found.values() for m in own])
    classes = {key: [(name, len(found[name])) for name in sorted(found)] for key, found in members.items()}
    wanted = [members[key][name] for key in (split, *also) for name, _ in classes[key]]
    _tell(split, classes)
    return CachePlan(classes, (3, side, side), lambda: decode_classes(wanted, "RGB", side), also)


def _tell(split: str, classes: Mapping[str, Classes]) -> None:
    """Print once what a user of the published images should know."""
    if split == "train" and split_hash(classes) == PUBLISHED:
        _log.warning(
            "mini-ImageNet as published has 8 pairs of byte-identical images, 7 of them across classes and 6 of those "
            "across train and val; none is in test. They are kept."
        )


def _members(table: _Table) -> dict[str, list[Member]]:
    """The images of each class, in the order of the table."""
    try:
        text = io.StringIO(table.data.decode("utf-8-sig"), newline="")  # Excel writes a byte order mark
        rows = [(row["filename"], row["label"]) for row in csv.DictReader(text)]
    except (UnicodeDecodeError, csv.Error, KeyError) as error:
        raise UserError(
            f"Expected columns filename and label, got {error!r} in {table.where}; fetch it again"
        ) from error
    found: dict[str, list[Member]] = {}
    for name, label in rows:
        if not name or not label or "/" in name or "\\" in name:
            raise UserError(
                f"Expected a file name and a label, got {name!r}, {label!r} in {table.where}; fix the table"
            )
        found.setdefault(label, []).append(Member(table.images, f"{table.folder}{name}"))
    if not found:
        raise UserError(f"Expected rows of filename and label, got none in {table.where}; fetch it again")
    return found


def _check_once(tables: Mapping[str, _Table], names: Sequence[str]) -> None:
    """An image listed twice could be both support and query of an episode."""
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise UserError(
            f"Expected every image once in {', '.join(table.where for table in tables.values())}, got {twice} twice; "
            "fetch the tables again"
        )


def _plan_pickles(split: str, side: int, pickles: dict[str, Path]) -> CachePlan:
    classes: dict[str, list[tuple[str, int]]] = {}
    for key, path in pickles.items():
        _, rows = _pickle(path)
        classes[key] = [(name, len(rows[name])) for name in sorted(rows)]
    check_disjoint({key: dict(own) for key, own in classes.items()}, pickles[split].parent, "fetch them again")
    _tell(split, classes)

    def arrays() -> Iterator[npt.NDArray[np.uint8]]:
        pictures, rows = _pickle(pickles[split])
        return (resized(pictures[rows[name]].transpose(0, 3, 1, 2), side) for name, _ in classes[split])

    return CachePlan(classes, (3, side, side), arrays)


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

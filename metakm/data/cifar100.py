"""CIFAR-100 from its official Python pickles, for the few-shot datasets that divide its classes.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009: 100 classes in 20 superclasses, 600 images of
32x32 in each class; training and test images are pooled. The pickles are read as untrusted data, see `pickles.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from metakm.data.archives import fingerprint, missing
from metakm.data.cache import CachePlan, Entry, cached
from metakm.data.dataset import FewShotDataset
from metakm.data.decode import resized
from metakm.data.labels import as_text
from metakm.data.pickles import read_pickle
from metakm.data.splits import SPLITS
from metakm.errors import UserError

VERSION = "cifar100 1"  # raise it when decoding changes
SIDE = 32
FOLDER = "cifar-100-python"
FILES = ("train", "test", "meta")


class FineClass(NamedTuple):
    """A class and its superclass by name, and the images uint8 `[n, 3, 32, 32]` in the order of the files."""

    name: str
    superclass: str
    images: npt.NDArray[np.uint8]


def load_cifar100(
    name: str, split: str, roots: Sequence[Path], side: int, split_of: Callable[[str, str], str]
) -> FewShotDataset:
    """Load a split of the dataset called `name`.

    Looks in each root for `cifar-100-python/`, also in `cifar100/` and `<name>/`.

    Args:
        split_of: the split of a class, given its name and its superclass.

    Raises:
        UserError: the data are missing or damaged.
    """
    folders = [root / sub / FOLDER for root in roots for sub in (".", "cifar100", name)]
    folder = next((folder for folder in folders if all((folder / file).is_file() for file in FILES)), None)
    if folder is None:
        raise missing(
            f"{FOLDER}/ with train, test and meta",
            [folder.parent for folder in folders],
            "fetch CIFAR-100's Python version (cifar-100-python.tar.gz), unpack it there",
        )
    stamp = fingerprint(f"{VERSION} {name} {side}", [], [folder / file for file in FILES])

    def plan() -> CachePlan:
        found = sorted(read_classes(folder), key=lambda each: each.name)
        divided = {key: [c for c in found if split_of(c.name, c.superclass) == key] for key in SPLITS}
        classes = {key: [(c.name, len(c.images)) for c in own] for key, own in divided.items()}
        return CachePlan(classes, (3, side, side), lambda: (resized(c.images, side) for c in divided[split]))

    return cached(Entry(name, split, rotations=False, fingerprint=stamp), plan)


def read_classes(folder: Path) -> Iterator[FineClass]:
    """All classes, by number.

    Raises:
        UserError: a file that is damaged, or not of CIFAR-100.
    """
    meta = _read(folder / "meta")
    fine, coarse = (_texts(meta, key, folder / "meta") for key in ("fine_label_names", "coarse_label_names"))
    parts = [_part(folder / file, len(fine), len(coarse)) for file in ("train", "test")]
    images, fine_labels, coarse_labels = (np.concatenate(each) for each in zip(*parts, strict=True))
    for label, name in enumerate(fine):
        own = fine_labels == label
        above = np.unique(coarse_labels[own])
        if len(above) != 1:
            raise UserError(
                f"Expected images of {name} with one superclass, got {own.sum()} images with {len(above)} in {folder}; "
                "fetch CIFAR-100 again"
            )
        yield FineClass(name, coarse[int(above[0])], images[own])


def _part(path: Path, fine: int, coarse: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any], npt.NDArray[Any]]:
    """Images `[M, 3, 32, 32]`, fine labels and coarse labels `[M]`."""
    read = _read(path)
    try:
        images = np.asarray(read["data"])
        labels = [np.asarray(read[key]) for key in ("fine_labels", "coarse_labels")]
    except (KeyError, TypeError, ValueError) as error:
        raise _unlike(path, repr(error)) from error
    if images.dtype != np.uint8 or images.shape != (len(images), 3 * SIDE * SIDE):
        raise _unlike(path, f"data {images.dtype} {list(images.shape)}")
    for found, count in zip(labels, (fine, coarse), strict=True):
        whole = found.shape == (len(images),) and found.dtype.kind in "iu"
        if not whole or (len(found) and not 0 <= found.min() <= found.max() < count):
            raise _unlike(path, f"labels {found.dtype} {list(found.shape)} for {len(images)} images of {count} classes")
    return images.reshape(-1, 3, SIDE, SIDE), labels[0], labels[1]


def _read(path: Path) -> dict[str, Any]:
    read = read_pickle(path)
    if not isinstance(read, dict):
        raise _unlike(path, type(read).__name__)
    return {as_text(key): value for key, value in read.items()}


def _texts(meta: dict[str, Any], key: str, path: Path) -> list[str]:
    names = meta.get(key)
    if not isinstance(names, list) or len({*map(as_text, names)}) != len(names) or not names:
        raise UserError(f"Expected different names as {key}, got {names!r:.80} in {path}; fetch CIFAR-100 again")
    return [as_text(name) for name in names]


def _unlike(path: Path, got: str) -> UserError:
    return UserError(
        f"Expected a dict of data, uint8 [M, 3072], fine_labels and coarse_labels, got {got} in {path}; fetch "
        "CIFAR-100's Python version again"
    )

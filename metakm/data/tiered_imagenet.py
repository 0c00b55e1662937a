"""tieredImageNet: 608 classes of ImageNet, about 1,280 photographs each, 84x84, split 351 / 97 / 160 by category.

Ren, Triantafillou, Ravi, Snell, Swersky, Tenenbaum, Larochelle, Zemel, "Meta-Learning for Semi-Supervised Few-Shot
Classification", ICLR 2018. It may not be redistributed, so nothing is downloaded. The pickled form that the authors
gave out is read, for each split:

- `<split>_images_png.pkl`: a list of images, each the bytes of a PNG file as a uint8 array;
- `<split>_labels.pkl`: a dict of `label_specific`, class numbers `[M]` of the split, and, where they are there,
  `label_specific_str` and `label_general_str`, the names of classes and of categories.

A split's images are held in memory, packed, while they are decoded (about 6 GB for `train`), and then take 21 kB each
in the cache. The pickles are read as untrusted data, see `pickles.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from metakm.data.archives import fingerprint, missing
from metakm.data.cache import CachePlan, Entry, cached
from metakm.data.dataset import FewShotDataset
from metakm.data.decode import decode
from metakm.data.labels import as_text
from metakm.data.pickles import read_pickle
from metakm.data.registry import register_dataset
from metakm.data.splits import SPLITS, check_disjoint
from metakm.errors import UserError

VERSION = "tiered-imagenet 1"  # raise it when decoding changes
SIDE = 84


class _Labels(NamedTuple):
    """Class numbers `[M]`, the name of each number, and the categories."""

    numbers: npt.NDArray[Any]
    names: dict[int, str]
    categories: list[str]


@register_dataset("tiered-imagenet", title="tieredImageNet", family="photographs", ways=5, resized=True)
def load_tiered_imagenet(split: str, roots: Sequence[Path], side: int = SIDE) -> FewShotDataset:
    """Load a split; only its own images are decoded, to `[3, side, side]`.

    Looks in each root for `tiered-imagenet/` and the root itself, and there for the two files of each split.

    Raises:
        UserError: the data are missing or damaged, or a category is in two splits.
    """
    folders = [root / sub for root in roots for sub in ("tiered-imagenet", ".")]
    names = {key: (f"{key}_images_png.pkl", f"{key}_labels.pkl") for key in SPLITS}
    wanted = [name for pair in names.values() for name in pair]
    folder = next((folder for folder in folders if all((folder / name).is_file() for name in wanted)), None)
    if folder is None:
        raise missing(
            "{train,val,test}_images_png.pkl and {train,val,test}_labels.pkl",
            folders,
            "get tieredImageNet from a source that may share it (it cannot be downloaded here), and set METAKM_DATA to "
            "its folder",
        )
    stamp = fingerprint(f"{VERSION} {side}", [], [folder / name for name in wanted])
    return cached(
        Entry("tiered-imagenet", split, rotations=False, fingerprint=stamp), lambda: _plan(split, folder, side)
    )


def _plan(split: str, folder: Path, side: int) -> CachePlan:
    labels = {key: _labels(folder / f"{key}_labels.pkl") for key in SPLITS}
    check_disjoint({key: each.categories for key, each in labels.items()}, folder, "fetch the files again")
    classes = {
        key: [(name, int((each.numbers == n).sum())) for n, name in each.names.items()] for key, each in labels.items()
    }
    return CachePlan(
        classes, (3, side, side), lambda: _decoded(folder / f"{split}_images_png.pkl", labels[split], side)
    )


def _decoded(path: Path, labels: _Labels, side: int) -> Iterator[npt.NDArray[np.uint8]]:
    images = read_pickle(path)
    if not isinstance(images, list) or len(images) != len(labels.numbers):
        got = f"{len(images)} of them" if isinstance(images, list) else type(images).__name__
        raise UserError(
            f"Expected a list of {len(labels.numbers)} images, as there are labels, got {got} in {path}; fetch it again"
        )
    for number in labels.names:
        rows = np.flatnonzero(labels.numbers == number)
        yield np.stack([decode(_png(images[row]), f"{path}: image {row}", "RGB", side) for row in rows])


def _png(image: Any) -> bytes:
    return image if isinstance(image, bytes) else np.asarray(image).tobytes()


def _labels(path: Path) -> _Labels:
    read = read_pickle(path)
    try:
        data = {as_text(key): value for key, value in read.items()}
        numbers = np.asarray(data["label_specific"])
        titles = [as_text(name) for name in _listed(data.get("label_specific_str", ()))]
        categories = [as_text(name) for name in _listed(data.get("label_general_str", ()))]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unlike(path, repr(error)) from error
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or not len(numbers) or numbers.min() < 0:
        raise _unlike(path, f"label_specific {numbers.dtype} {list(numbers.shape)}")
    found = [int(number) for number in np.unique(numbers)]
    if titles and found[-1] >= len(titles):
        raise _unlike(path, f"class {found[-1]} with {len(titles)} names")
    names = {number: f"{number:03d} {titles[number]}".strip() if titles else f"{number:03d}" for number in found}
    return _Labels(numbers, names, categories)


def _listed(names: Any) -> list[Any]:
    return list(names) if isinstance(names, list | tuple) else list(np.asarray(names).tolist())


def _unlike(path: Path, got: str) -> UserError:
    return UserError(
        f"Expected a dict of label_specific, class numbers [M], with names where it has them, got {got} in {path}; "
        "fetch it again"
    )

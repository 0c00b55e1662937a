"""One split of a few-shot dataset: images sorted by class, in one array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from metakm.data.splits import SPLITS, split_hash
from metakm.errors import UserError, unknown_name


@dataclass(frozen=True, eq=False)
class FewShotDataset:
    """The images of one split, class after class.

    images: uint8 `[M, C, H, W]`, possibly a read-only memory map; the images of class c are rows
        `offsets[c]:offsets[c + 1]`.
    offsets: int64 `[n_classes + 1]`, strictly increasing from 0 to M.
    rotations: whether an episode turns each class by a multiple of 90 degrees drawn per class and task.
    split_hash: 16 hex digits over the class names and image counts of all three splits (see `splits.py`).

    Raises UserError if the parts do not fit together.
    """

    name: str
    split: str
    images: npt.NDArray[np.uint8] = field(repr=False)
    class_names: tuple[str, ...] = field(repr=False)
    offsets: npt.NDArray[np.int64] = field(repr=False)
    rotations: bool
    split_hash: str

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise unknown_name("split", self.split, SPLITS)
        _check_images(self.images, self.rotations)
        _check_classes(self.class_names, self.offsets, len(self.images))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def n_classes(self) -> int:
        """How many classes this split has."""
        return len(self.class_names)

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Images per class, `[n_classes]`."""
        return np.diff(self.offsets)

    @classmethod
    def from_arrays(
        cls,
        images: npt.ArrayLike,
        labels: Sequence[Any] | npt.NDArray[Any],
        *,
        name: str = "custom",
        split: str = "train",
        rotations: bool = False,
    ) -> FewShotDataset:
        """Make a dataset of your own arrays.

        images: uint8 `[M, C, H, W]`; labels: `[M]`, numbers or strings, in any order. Classes are sorted by
        label and keep the order of their images. `split_hash` then covers this split alone. Copies the images.

        Raises UserError if the shapes do not fit.
        """
        pictures, marks = np.asarray(images), np.asarray(labels)
        if marks.ndim != 1 or pictures.ndim < 1 or len(marks) != len(pictures):
            raise UserError(
                f"Expected one label an image, got labels {list(marks.shape)} for images "
                f"{list(pictures.shape)}; pass labels as [M] and images as [M, C, H, W]"
            )
        kinds, counts = np.unique(marks, return_counts=True)
        names = tuple(str(kind) for kind in kinds)
        return cls(
            name=name,
            split=split,
            images=pictures[np.argsort(marks, kind="stable")],
            class_names=names,
            offsets=offsets_of(counts),
            rotations=rotations,
            split_hash=split_hash({split: [(n, int(c)) for n, c in zip(names, counts, strict=True)]}),
        )


def offsets_of(counts: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Turn images per class `[n]` into the row at which each class begins, and the end: `[n + 1]`."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)


def _check_images(images: npt.NDArray[np.uint8], rotations: bool) -> None:
    if images.ndim != 4 or images.dtype != np.uint8 or 0 in images.shape:
        raise UserError(
            f"Expected images as uint8 [M, C, H, W], got {images.dtype} {list(images.shape)}; "
            "scale values to 0..255 and add the channel axis"
        )
    if rotations and images.shape[2] != images.shape[3]:
        raise UserError(
            f"Expected square images to rotate by 90 degrees, got {list(images.shape[2:])}; "
            "resize them or set rotations=False"
        )


def _check_classes(names: Sequence[str], offsets: npt.NDArray[np.int64], n_images: int) -> None:
    if len(set(names)) != len(names):
        raise UserError(f"Expected different class names, got {len(names) - len(set(names))} repeated; rename them")
    fits = offsets.shape == (len(names) + 1,) and offsets.dtype == np.int64
    if not fits or offsets[0] != 0 or offsets[-1] != n_images or (np.diff(offsets) < 1).any():
        raise UserError(
            f"Expected offsets as int64 [{len(names) + 1}] rising from 0 to {n_images} (no empty class), "
            f"got {offsets.dtype} {list(offsets.shape)}; build them with FewShotDataset.from_arrays"
        )

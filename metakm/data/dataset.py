"""One split of a few-shot dataset: images sorted by class, in one array."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from metakm.data.labels import label_array, names_in, names_of, plain_label
from metakm.data.splits import SPLITS, split_hash
from metakm.errors import UserError, unknown_name


@dataclass(frozen=True, eq=False)
class FewShotDataset:
    """The images of one split, class after class.

    Attributes:
        images: uint8 `[M, C, H, W]`, possibly a read-only memory map; the images of class c are rows
            `offsets[c]:offsets[c + 1]`.
        offsets: int64 `[n_classes + 1]`, strictly increasing from 0 to M.
        rotations: whether an episode rotates each class by a multiple of 90 degrees drawn per class and task.
        split_hash: 16 hex digits over the class names and image counts of all three splits (see `splits.py`).

    Raises:
        UserError: the parts do not fit together.
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

    def __getstate__(self) -> dict[str, Any]:
        """Only the fields, for pickles and copies; what is derived from them is derived again."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def n_classes(self) -> int:
        """Number of classes in this split."""
        return len(self.class_names)

    @property
    def n_episode_classes(self) -> int:
        """Number of different classes in episodes: with rotations, a class turned by 90 degrees is another."""
        return self.n_classes * (4 if self.rotations else 1)

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Images per class, `[n_classes]`."""
        return np.diff(self.offsets)

    @cached_property
    def rotated(self) -> npt.NDArray[np.uint8]:
        """The images rotated counter-clockwise by 0, 90, 180 and 270 degrees, `[4*M, C, H, W]`; they are square.

        Memory: four times that of the images, from the first use on.
        """
        rotated = np.empty((4, *self.images.shape), np.uint8)
        for quarters in range(4):
            rotated[quarters] = np.rot90(self.images, quarters, axes=(-2, -1))
        return rotated.reshape(-1, *self.image_shape)  # [4, M, C, H, W] -> [4*M, C, H, W]

    @classmethod
    def from_arrays(
        cls,
        images: npt.ArrayLike,
        labels: Sequence[Any] | npt.NDArray[Any],
        *,
        name: str = "custom",
        split: str = "train",
        rotations: bool = False,
        class_names: Sequence[str] | None = None,
    ) -> FewShotDataset:
        """Make a dataset from your own arrays.

        Classes are sorted by label and keep the order of their images. `split_hash` then covers this split alone.

        Args:
            images: uint8 `[M, C, H, W]`; they are copied.
            labels: `[M]`, all numbers or all strings, in any order.
            class_names: of the labels 0, 1, ...; None for the labels themselves.

        Raises:
            UserError: the shapes do not fit, a label is missing, or one that has no name.
        """
        pictures, marks = np.asarray(images), label_array(labels)
        if pictures.ndim < 1 or len(marks) != len(pictures):
            raise UserError(
                f"Expected one label per image, got labels {list(marks.shape)} for images "
                f"{list(pictures.shape)}; pass labels as [M] and images as [M, C, H, W]"
            )
        kinds, counts = np.unique(marks, return_counts=True)
        names = tuple(map(str, kinds)) if class_names is None else names_of(kinds, class_names)
        return cls(
            name=name,
            split=split,
            images=pictures[np.argsort(marks, kind="stable")],
            class_names=names,
            offsets=offsets_of(counts),
            rotations=rotations,
            split_hash=split_hash({split: [(n, int(c)) for n, c in zip(names, counts, strict=True)]}),
        )

    @classmethod
    def from_dataset(
        cls, dataset: Any, *, name: str = "custom", split: str = "train", rotations: bool = False
    ) -> FewShotDataset:
        """Make a dataset from a `torch.utils.data.Dataset` with a length, whose items are pairs of image and label.

        An image is a PIL image in mode "L" or "RGB", or a tensor or array `[C, H, W]` of uint8, or of floats in
        [0, 1], which are rounded to multiples of 1/255; all have the same size. A label is a number or a string; if
        `dataset.classes`, which torchvision's datasets have, lists a name for each number, classes have these names.
        Reads every item once, in order, and keeps all images in memory, a byte per value. Otherwise see `from_arrays`.

        Raises:
            UserError: a dataset without a length, or an item that does not fit; it gives the item's number.
        """
        if isinstance(dataset, Mapping):
            raise UserError(
                f"Expected one dataset, got a {type(dataset).__name__} of {_keys(dataset)}; pass one of them"
            )
        try:
            count = len(dataset)
        except TypeError as error:
            raise UserError(
                f"Expected a dataset with a length, got {type(dataset).__name__}; make it a list"
            ) from error
        if count < 1:
            raise UserError("Expected a dataset with at least one image, got an empty one")
        pairs = [_pair(dataset[index], index) for index in range(count)]
        first = pairs[0][0].shape
        for index, (picture, _) in enumerate(pairs):
            if picture.shape != first:
                raise UserError(
                    f"Expected images of one shape, got {list(first)} for item 0 and {list(picture.shape)} for item "
                    f"{index}; resize them in the dataset's transform"
                )
        images, labels = np.stack([picture for picture, _ in pairs]), [label for _, label in pairs]
        names = names_in(dataset, labels)
        return cls.from_arrays(images, labels, name=name, split=split, rotations=rotations, class_names=names)


def offsets_of(counts: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Turn images per class `[n]` into the row at which each class begins, and the end: `[n + 1]`."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)


def _pair(item: Any, index: int) -> tuple[npt.NDArray[np.uint8], Any]:
    """The image as uint8 `[C, H, W]`, and the label as a plain number or string."""
    if isinstance(item, Mapping):
        raise UserError(
            f"Expected pairs of image and label, got a {type(item).__name__} of {_keys(item)} for item {index}; pass "
            '[(item["image"], item["label"]) for item in dataset], with its keys for them'
        )
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise UserError(
            f"Expected pairs of image and label, got {type(item).__name__} for item {index}; wrap the dataset"
        )
    image, label = item
    if isinstance(image, Image.Image):
        if image.mode not in ("L", "RGB"):
            raise UserError(f'Expected images in mode "L" or "RGB", got {image.mode} for item {index}; convert them')
        array = np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)
    elif isinstance(image, torch.Tensor):  # also one that takes gradients, and of 16 bits
        array = (image.float() if image.is_floating_point() else image).numpy(force=True)
    else:
        array = np.asarray(image)
    if array.ndim != 3 or array.shape[0] not in (1, 3) or array.size == 0:
        raise UserError(
            f"Expected images as [C, H, W] with 1 or 3 channels, got {list(array.shape)} for item {index}; channels "
            "come first"
        )
    return _to_bytes(array, index), _label(label, index)


def _label(label: Any, index: int) -> Any:
    try:
        return plain_label(label)
    except UserError as error:
        raise UserError(f"{error} (item {index})") from error


def _keys(mapping: Mapping[Any, Any]) -> str:
    return ", ".join(map(repr, mapping))


def _to_bytes(array: npt.NDArray[Any], index: int) -> npt.NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return np.asarray(array, np.uint8)
    if not np.issubdtype(array.dtype, np.floating) or not (array.min() >= 0 and array.max() <= 1):
        raise UserError(
            f"Expected uint8 images, or floats from 0 to 1, got {array.dtype} from {array.min():g} to "
            f"{array.max():g} for item {index}; leave normalisation out of the transform"
        )
    rounded: npt.NDArray[np.uint8] = np.rint(array * 255).astype(np.uint8)
    return rounded


def _check_images(images: npt.NDArray[np.uint8], rotations: bool) -> None:
    if images.ndim != 4 or images.dtype != np.uint8 or 0 in images.shape:
        raise UserError(
            f"Expected images as uint8 [M, C, H, W], got {images.dtype} {list(images.shape)}; "
            "scale values to 0..255 and add the channel axis"
        )
    _, channels, height, width = images.shape
    if channels > 4 and (channels == height != width or (width == 3 and height > 3)):
        raise UserError(
            f"Expected images as [M, C, H, W], got {list(images.shape)}, which looks like [M, H, W, C]; move the "
            "channels to the front: images.transpose(0, 3, 1, 2)"
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

"""Grey versions of a dataset's images, for a network that was trained on images of other channels."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from metakm.data.dataset import FewShotDataset
from metakm.errors import UserError

_AT_ONCE = 1024  # images


def in_grey(dataset: FewShotDataset, channels: int) -> FewShotDataset:
    """The dataset with grey images of `channels` equal channels.

    Of colour images it is the luma of ITU-R 601, rounded as Pillow does. Nothing else changes: the same episodes have
    the same hash. Memory: all images, a byte a value.

    Raises:
        UserError: images that are neither grey nor in colour.
    """
    count, own, height, width = dataset.images.shape
    if own not in (1, 3):
        raise UserError(
            f"Expected images of 1 or 3 channels to make grey, got {own} in {dataset.name}; leave --grey out"
        )
    grey = np.empty((count, channels, height, width), np.uint8)
    for start in range(0, count, _AT_ONCE):
        grey[start : start + _AT_ONCE] = _luma(np.asarray(dataset.images[start : start + _AT_ONCE]))
    return dataclasses.replace(dataset, images=grey)


def _luma(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """`[n, 1 or 3, H, W]` -> `[n, 1, H, W]`."""
    if images.shape[1] == 1:
        return images
    red, green, blue = (images[:, channel].astype(np.uint32) for channel in range(3))
    luma: npt.NDArray[np.uint8] = ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).astype(np.uint8)
    return luma[:, None]

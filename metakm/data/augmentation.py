"""Random crops and flips of the photographs of meta-training episodes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

PADDING = 10
"""An image is shifted by up to side / PADDING pixels: 8 of 84."""


def pad_crop_flip(pictures: npt.NDArray[np.uint8], words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Pad each image by reflection, crop it to its size at a random position, and flip half of the images horizontally.

    Args:
        pictures: `[..., C, H, W]`.
        words: random, one per image, `[...]`. Their top bits choose mirroring, the next 21 the row, 21 more the column.
    """
    images, chosen = pictures.reshape(-1, *pictures.shape[-3:]), words.reshape(-1)
    rows = _window(chosen >> np.uint64(42), pictures.shape[-2])  # [n, H]
    columns = _window(chosen >> np.uint64(21), pictures.shape[-1])  # [n, W]
    mirrored = (chosen >> np.uint64(63)).astype(bool)
    columns[mirrored] = columns[mirrored, ::-1]
    cropped = np.empty_like(images)
    for place, image in enumerate(images):  # faster than one index for all of them
        cropped[place] = image[:, rows[place]][:, :, columns[place]]
    return cropped.reshape(pictures.shape)


def _window(bits: npt.NDArray[np.uint64], side: int) -> npt.NDArray[np.int64]:
    """Where the pixels of a random window come from, `[n, side]`; pixels outside are reflected at the edge.

    bits: `[n]`; the lowest 21 are used, and the bias of their remainder is below 1e-4.
    """
    margin = side // PADDING
    shifts = (bits & np.uint64(2**21 - 1)).astype(np.int64) % (2 * margin + 1) - margin
    places = np.abs(np.arange(side) + shifts[:, None])
    inside: npt.NDArray[np.int64] = (side - 1) - np.abs((side - 1) - places)
    return inside

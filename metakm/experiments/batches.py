"""Batches for supervised training: order and augmentation depend only on (seed, epoch, image)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from metakm.data.dataset import FewShotDataset
from metakm.data.rng import raw_words, stream_key
from metakm.experiments.classification import labels_of
from metakm.models.pretrained import Preprocessing

Augmentation = Literal["none", "pad-crop", "resized-crop"]


class Normalisation(NamedTuple):
    """Mean and standard deviation of the colours, of images in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Normalisation(Preprocessing().mean, Preprocessing().std)
"""What torchvision's weights expect; for every dataset, as it belongs to the network."""

AREA = (0.22, 1.0)  # of a resized crop, as a share of the image (Cai et al. 2020, TinyTL)
ASPECT = (3 / 4, 4 / 3)
CHOICES = 4  # random numbers that the augmentation of an image takes


class Batch(NamedTuple):
    """Images float32 `[n, 3, H, W]`, channels-last in memory, and labels `[n]`."""

    images: Tensor
    labels: Tensor


class Batches:
    """The batches of one part of a dataset, or of several together.

    Args:
        parts: their images follow each other; they are not copied.
        size: side of the resulting images; `resized-crop` crops it from larger ones.
        normalisation: what the network expects.
    """

    def __init__(
        self,
        parts: Sequence[FewShotDataset],
        batch: int,
        seed: int,
        augmentation: Augmentation,
        size: int,
        normalisation: Normalisation = IMAGENET,
    ) -> None:
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in normalisation)
        self.parts, self.batch, self.augmentation, self.size = parts, batch, augmentation, size
        self.labels = torch.from_numpy(np.concatenate([labels_of(part) for part in parts]))
        self._order_key, self._words_key = stream_key("order", seed), stream_key("augmentation", seed)
        self._order: npt.NDArray[np.int64]
        self._uniform: npt.NDArray[np.float64]
        self._epoch, self._order, self._uniform = -1, np.empty(0, np.int64), np.empty(0)

    @property
    def per_epoch(self) -> int:
        """Full batches in an epoch."""
        return len(self.labels) // self.batch

    def training(self, iteration: int) -> Batch:
        """The batch of an iteration, shuffled and augmented."""
        epoch, position = divmod(iteration, self.per_epoch)
        self._draw(epoch)
        rows = self._order[position * self.batch : (position + 1) * self.batch]
        uniform = torch.from_numpy(self._uniform[rows])
        images = self._normalised(rows)
        if self.augmentation == "pad-crop":
            images = pad_crop(images, uniform)
        elif self.augmentation == "resized-crop":
            images = resized_crop(images, uniform, self.size)
        return Batch(images, self.labels[rows])

    def sequential(self, start: int) -> Batch:
        """The images from row `start` on, unchanged except for a central crop to `size`."""
        rows = np.arange(start, min(start + self.batch, len(self.labels)))
        images = self._normalised(rows)
        margin = (images.shape[-1] - self.size) // 2
        images = images[..., margin : margin + self.size, margin : margin + self.size]
        return Batch(images, self.labels[rows])

    def _normalised(self, rows: npt.NDArray[np.int64]) -> Tensor:
        images = torch.from_numpy(self._images(rows)).float() / 255  # [n, 3, H, W]
        return (images - self.mean) / self.std

    def _images(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        images = np.empty((len(rows), *self.parts[0].image_shape), np.uint8)
        start = 0
        for part in self.parts:
            own = (start <= rows) & (rows < start + len(part.images))
            images[own] = part.images[rows[own] - start]
            start += len(part.images)
        return images

    def _draw(self, epoch: int) -> None:
        """The order of the epoch `[M]`, and numbers in [0, 1) for the augmentation of each image `[M, CHOICES]`."""
        if self._epoch != epoch:
            self._epoch, n = epoch, len(self.labels)
            self._order = np.argsort(raw_words(self._order_key, [epoch], n)[0], kind="stable")
            words = raw_words(self._words_key, [epoch], n * CHOICES).reshape(n, CHOICES)
            self._uniform = ((words >> np.uint64(11)) * 2.0**-53).astype(np.float64)


def pad_crop(images: Tensor, uniform: Tensor) -> Tensor:
    """Shift each image by up to an eighth of its side, padded with zeros (the mean colour), and flip half of them.

    He et al. 2016, Sec. 4.2: 4 pixels for 32.

    Args:
        images: `[n, C, H, W]`.
        uniform: `[n, 3 or more]` in [0, 1): where to crop in height and width, and whether to flip.
    """
    n, _, height, width = images.shape
    margin = height // 8
    padded = F.pad(images, (margin, margin, margin, margin))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [n, C, 2*margin + 1, 2*margin + 1, H, W]
    down, across = (uniform[:, :2] * (2 * margin + 1)).long().unbind(1)
    cropped = windows[torch.arange(n), :, down, across]  # [n, C, H, W]
    return torch.where(uniform[:, 2, None, None, None] < 0.5, cropped.flip(3), cropped)


def resized_crop(images: Tensor, uniform: Tensor, size: int) -> Tensor:
    """Crop a share `AREA` of each image, aspect ratio in `ASPECT`, to `[n, C, size, size]`, and flip half of them.

    Bilinear. A side longer than the image's is cut to it.

    Args:
        images: `[n, C, H, W]`.
        uniform: `[n, 4]` in [0, 1): for area and flip (one number), aspect ratio, and position in height and width.
    """
    flip = uniform[:, 0] < 0.5
    area = AREA[0] + (AREA[1] - AREA[0]) * (2 * uniform[:, 0] % 1)
    aspect = (ASPECT[0] * (ASPECT[1] / ASPECT[0]) ** uniform[:, 1]).sqrt()
    width, height = (area.sqrt() * aspect).clamp(max=1), (area.sqrt() / aspect).clamp(max=1)
    across, down = (1 - width) * (2 * uniform[:, 2] - 1), (1 - height) * (2 * uniform[:, 3] - 1)  # centre, in [-1, 1]
    zero = torch.zeros_like(width)
    theta = torch.stack([torch.where(flip, -width, width), zero, across, zero, height, down], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta.to(images.dtype), [len(images), images.shape[1], size, size], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

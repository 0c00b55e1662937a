"""Photographs of a fit, decoded once and held in memory as long as there is room."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from metakm.device import cores
from metakm.errors import UserError
from metakm.io.files import expanded
from metakm.models.pretrained import Preprocessing
from metakm.photos.listing import Photo, Skipped, check_classes
from metakm.photos.reading import read_photo, square, without_warnings

BATCH = 32
"""Photos that a network is given at a time, at most."""
ROOM = 2 * 2**30
"""Bytes of decoded photos that are held; the others are decoded again each time."""


class PhotoStore:
    """Photos by number.

    Attributes:
        photos: where each is from.
        labels: class of each, `[n]`.
        classes: names, sorted.
        skipped: files that cannot be read and copies of a photo of the same class, and why.
        in_two_classes: names of photos that are the same, pixel by pixel, and of different classes; both are used.
        digest: SHA-256 of the classes and of the photos' labels and pixels.
    """

    def __init__(
        self,
        classes: Mapping[str, Sequence[Photo]],
        preprocessing: Preprocessing,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Decode all once.

        Args:
            progress: called after each with (photos done, all); may raise to end the reading.

        Raises:
            UserError: classes that `check_classes` refuses, once what cannot be read is left out.
        """
        classes = check_classes(classes)
        self.classes = tuple(sorted(classes))
        self._preprocessing = preprocessing
        self._held: dict[int, npt.NDArray[np.uint8]] = {}
        self.skipped: list[Skipped] = []
        self.in_two_classes: list[tuple[str, str]] = []
        given = [
            (photo, label, str(photo) if isinstance(photo, Path) else f"photo {number} of {name}")
            for label, name in enumerate(self.classes)
            for number, photo in enumerate(classes[name], 1)
        ]
        self.photos: list[Photo] = []
        labels, unread = [], dict[int, Skipped]()  # the first of each class
        seen: dict[bytes, dict[int, str]] = {}  # by pixels: the first of each class
        digest = hashlib.sha256(repr(self.classes).encode())
        pool, quiet = ThreadPoolExecutor(min(16, cores())), contextlib.ExitStack()
        try:
            quiet.enter_context(without_warnings())
            read = pool.map(self._try, [photo for photo, _, _ in given])
            for done, ((photo, label, name), found) in enumerate(zip(given, read, strict=True), 1):
                if progress is not None:
                    progress(done, len(given))
                if isinstance(found, UserError):
                    self.skipped.append(Skipped(Path(name), str(found)))
                    unread.setdefault(label, self.skipped[-1])
                    continue
                own = hashlib.sha256(found.tobytes()).digest()
                same = seen.setdefault(own, {})
                if label in same:  # it would be held out and trained on at once
                    self.skipped.append(Skipped(Path(name), f"a copy of {same[label]}"))
                    continue
                if same:
                    self.in_two_classes.append((name, next(iter(same.values()))))
                same[label] = name
                if len(self._held) * found.nbytes < ROOM:
                    self._held[len(self.photos)] = found
                digest.update(f"{label}\n".encode())
                digest.update(own)
                self.photos.append(photo)
                labels.append(label)
        finally:
            pool.shutdown(cancel_futures=True)
            quiet.close()
        self.labels, self.digest = torch.tensor(labels, dtype=torch.long), digest.hexdigest()
        self._check_readable(unread)

    def __len__(self) -> int:
        return len(self.photos)

    def counts(self) -> list[int]:
        """Photos of each class."""
        return torch.bincount(self.labels, minlength=len(self.classes)).tolist()

    def pixels(self, numbers: Sequence[int]) -> Tensor:
        """uint8 `[b, 3, S, S]`."""
        with without_warnings():
            arrays = [
                self._held[n] if n in self._held else photo_pixels(self.photos[n], self._preprocessing) for n in numbers
            ]
        return torch.from_numpy(np.stack(arrays))

    def batches(self, numbers: Sequence[int]) -> Iterator[Tensor]:
        """`pixels` of at most `BATCH` photos at a time, in their order."""
        for first in range(0, len(numbers), BATCH):
            yield self.pixels(numbers[first : first + BATCH])

    def _try(self, photo: Photo) -> npt.NDArray[np.uint8] | UserError:
        try:
            return photo_pixels(photo, self._preprocessing)
        except UserError as error:
            return error

    def _check_readable(self, unread: Mapping[int, Skipped]) -> None:
        empty = [label for label, count in enumerate(self.counts()) if not count]
        if empty:
            names = ", ".join(repr(self.classes[label]) for label in empty)
            raise UserError(
                f"Expected a readable image in each class, got none in {names} ({unread[empty[0]].reason}); add some"
            )


def photo_pixels(photo: Photo, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """uint8 `[3, S, S]`.

    Raises:
        UserError: a file that cannot be read, or an array that is no image.
    """
    side, interpolation = preprocessing.size, preprocessing.interpolation
    if isinstance(photo, Image.Image):
        return square(photo, side, interpolation)
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or not photo.size:
            raise UserError(f"Expected an image as uint8 [H, W, 3], got {photo.dtype} {list(photo.shape)}; convert it")
        return square(Image.fromarray(photo), side, interpolation)
    return read_photo(photo, side, interpolation)


def as_photo(given: Any) -> Photo:
    """A photo as users hand it over.

    Raises:
        UserError: something that is no path, image or array, or the home of an unknown user.
    """
    if isinstance(given, Image.Image | np.ndarray):
        return given
    if isinstance(given, str | os.PathLike):
        return expanded(os.fspath(given), "a photo's path")
    raise UserError(f"Expected a path, a PIL image or an array [H, W, 3], got {type(given).__name__}")


def normalise(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 `[n, 3, S, S]` to what the network takes."""
    like = {"dtype": torch.float32, "device": pixels.device}
    mean, std = torch.tensor(preprocessing.mean, **like), torch.tensor(preprocessing.std, **like)  # type: ignore[arg-type]
    return (pixels.to(torch.float32) / 255 - mean[:, None, None]) / std[:, None, None]

"""Photographs from files of any kind that a camera, a phone or the web makes, as squares of RGB."""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from metakm.data.decode import DAMAGED, turned_upright
from metakm.errors import UserError
from metakm.models.pretrained import Interpolation

LARGEST = 2**30
"""Pixels of a file; a larger one is refused."""

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_PHONE = frozenset({".heic", ".heif"})
_limit = threading.Lock()
_filters = threading.Lock()
_within = 0  # of the blocks of `without_warnings`
_usual = contextlib.ExitStack()  # restores the filters from before the first of them


def read_photo(path: Path, side: int, interpolation: Interpolation = "bicubic") -> npt.NDArray[np.uint8]:
    """The middle square of a photograph, upright and resized: uint8 `[3, side, side]`.

    Of an animation the first frame; transparency lies on white; 16 bits a channel become 8.

    Raises:
        UserError: a file that cannot be read, is no image, or has more than `LARGEST` pixels. It names the file.
    """
    try:
        image = _open(path)
        image.draft("RGB", (side, side))  # a JPEG is decoded at the smallest size that is not below
        return _square(image, side, interpolation)
    except FileNotFoundError as error:
        raise UserError(f"Expected an image, got no file {path}; check the path") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"Expected an image of at most {LARGEST:,} pixels, got more in {path}; reduce it") from error
    except UnidentifiedImageError as error:
        raise UserError(f"Expected an image, got {_content(path)}, {path}; convert it, or leave it out") from error
    except DAMAGED as error:
        raise UserError(f"Expected a whole image, got {str(error) or type(error).__name__} from {path}") from error


def square(image: Image.Image, side: int, interpolation: Interpolation = "bicubic") -> npt.NDArray[np.uint8]:
    """The middle square of an image in memory, which stays as it is; see `read_photo`.

    Raises:
        UserError: its pixels cannot be read.
    """
    try:
        return _square(image, side, interpolation)
    except DAMAGED as error:
        raise UserError(f"Expected a whole image, got {str(error) or type(error).__name__}; leave it out") from error


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Within the block, Pillow says nothing about metadata and sizes; what cannot be read raises all the same.

    For all threads of the process, from the first that enters a block to the last that leaves one: the filters are the
    process's own, and threads that put them back in another order would not restore them.
    """
    global _within
    with _filters:
        if not _within:
            _usual.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        _within += 1
    try:
        yield
    finally:
        with _filters:
            _within -= 1
            if not _within:
                _usual.close()


def _open(path: Path) -> Image.Image:
    """Pillow's limit on the number of pixels, which is global, is raised while the header is read."""
    if path.suffix.lower() in _PHONE:
        _add_phone_format()
    data = io.BytesIO(path.read_bytes())
    with _limit:
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, LARGEST // 2  # an error from twice as many on
        try:
            return Image.open(data)
        finally:
            Image.MAX_IMAGE_PIXELS = usual


def _square(image: Image.Image, side: int, interpolation: Interpolation) -> npt.NDArray[np.uint8]:
    image.load()
    turned = turned_upright(image)
    width, height = turned.size
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    box = (left, top, left + short, top + short)
    resized = _rgb(turned).resize((side, side), _RESAMPLING[interpolation], box)  # crop() has Pillow's limit on pixels
    return np.asarray(resized).transpose(2, 0, 1)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(image).convert("RGB")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        coloured = image.convert("RGBA")
        white = Image.new("RGBA", coloured.size, "white")
        return Image.alpha_composite(white, coloured).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey values of 16 bits by their range; others by the first of 1 (real numbers), 255, 65,535 that none exceeds."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    peak = values.max(initial=0)
    ranges = [65535.0] if image.mode.startswith("I;16") else [1.0, 255.0, 65535.0][image.mode != "F" :]
    top = next((bound for bound in ranges if peak <= bound), peak)
    scaled = 255 * values / top
    return Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))


def _content(path: Path) -> str:
    if path.stat().st_size == 0:
        return "an empty file"
    if path.suffix.lower() in _PHONE:
        return "HEIC, a phone's format (to read it, pip install pillow-heif)"
    return "another kind of file"


def _add_phone_format() -> None:
    try:
        import pillow_heif
    except ImportError:
        return
    pillow_heif.register_heif_opener()

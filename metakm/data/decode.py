"""Decoding image files to arrays."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from metakm.data.archives import Member, Read
from metakm.errors import UserError
from metakm.io.files import expanded

_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})

DAMAGED = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, TypeError, LookupError, MemoryError, RuntimeError,
    ArithmeticError,
)  # fmt: skip
"""What Pillow and its plugins raise over files, or EXIF data, that are not whole."""


def decode(data: bytes, where: str, mode: str, side: int, upright: bool = False) -> npt.NDArray[np.uint8]:
    """Decode an image file, convert it to mode "L" or "RGB", resize it with LANCZOS: `[C, side, side]`.

    With `upright` a camera's EXIF orientation is followed; the published datasets are read without.

    Raises:
        UserError: the bytes are not one whole opaque image of 8 bits a channel, of at most Pillow's
            `Image.MAX_IMAGE_PIXELS` pixels; it names `where`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # Pillow's about metadata, one a file
            with Image.open(io.BytesIO(data)) as image:
                _check(image, where)
                turned = turned_upright(image) if upright else image
                small = turned.convert(mode).resize((side, side), Image.Resampling.LANCZOS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"Expected an image of usual size, got {error} from {where}; make it smaller") from error
    except DAMAGED as error:
        unknown = isinstance(error, UnidentifiedImageError)  # whose text names an object in memory
        found = "a file in no image format" if unknown else str(error) or type(error).__name__
        raise UserError(f"Expected an image, got {found} from {where}; fetch it again") from error
    array = np.asarray(small)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _check(image: Image.Image, where: str) -> None:
    if image.mode not in _MODES:
        raise UserError(
            f"Expected an image of 8 bits a channel, grey or colour, got mode {image.mode} from {where}; convert it"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a photograph with its preview
        raise UserError(f"Expected a still image, got {frames} frames from {where}; keep one of them")
    alpha = "A" in image.getbands() or "transparency" in image.info
    if alpha and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        raise UserError(f"Expected an opaque image, got transparent pixels from {where}; give it a background")


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to turn an image upright, by its EXIF orientation."""


def turned_upright(image: Image.Image) -> Image.Image:
    """Follow the EXIF orientation; damaged EXIF data are none, for the pixels are whole."""
    image.load()  # damaged pixels raise here
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except DAMAGED:
        return image
    return image if turn is None else image.transpose(turn)


def decode_classes(
    classes: Sequence[Sequence[Member]], mode: str, side: int, upright: bool = False
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield `[count, C, side, side]` for each class. A source is opened once, and read member by member."""
    with contextlib.ExitStack() as stack:
        readers: dict[int, Read] = {}
        for members in classes:
            arrays = []
            for member in members:
                key = id(member.source)
                if key not in readers:
                    readers[key] = stack.enter_context(member.source.reader())
                arrays.append(decode(readers[key](member.name), member.where, mode, side, upright))
            yield np.stack(arrays)


def resized(images: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """`[n, 3, H, W]` to `[n, 3, side, side]` by LANCZOS; as it is where that is its size."""
    if images.shape[2:] == (side, side):
        return images
    pictures = (Image.fromarray(image.transpose(1, 2, 0)) for image in images)
    small = [np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS)) for picture in pictures]
    return np.stack(small).transpose(0, 3, 1, 2)


def read_images(paths: str | Path | Iterable[str | Path], image_shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Read image files as a strategy trained on images of `image_shape` (C, H, W) expects them: uint8 `[n, C, H, W]`.

    Grey for one channel, RGB for three; upright by EXIF orientation, resized to the square by LANCZOS.

    Raises:
        UserError: an image that cannot be read, which it names, or a shape that is not a square.
    """
    channels, height, width = image_shape
    if channels not in (1, 3) or height != width:
        raise UserError(f"Expected an image shape of 1 or 3 channels and a square, got {image_shape}; resize by hand")
    given = [paths] if isinstance(paths, str | Path) else paths
    files = [expanded(path, "an image's path") for path in given]
    if not files:
        raise UserError("Expected at least one image file, got none; pass their paths")
    mode = "L" if channels == 1 else "RGB"
    return np.stack([decode(_read(file), str(file), mode, height, upright=True) for file in files])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"Expected a readable file, got {error}; check the path") from error

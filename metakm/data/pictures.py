"""Decoding image files to arrays."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from metakm.data.sources import Member, Read
from metakm.errors import UserError


def decode(data: bytes, where: str, mode: str, side: int) -> npt.NDArray[np.uint8]:
    """Decode an image file, convert it to mode "L" or "RGB", resize it with LANCZOS: `[C, side, side]`.

    Raises UserError that names `where` if the bytes are not a whole image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            small = image.convert(mode).resize((side, side), Image.Resampling.LANCZOS)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise UserError(f"Expected an image, got {error} from {where}; fetch it again") from error
    array = np.asarray(small)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def decode_classes(classes: Sequence[Sequence[Member]], mode: str, side: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield `[count, C, side, side]` for each class. A source is opened once, and read member by member."""
    with contextlib.ExitStack() as stack:
        readers: dict[int, Read] = {}
        for members in classes:
            arrays = []
            for member in members:
                key = id(member.source)
                if key not in readers:
                    readers[key] = stack.enter_context(member.source.opened())
                arrays.append(decode(readers[key](member.name), member.where, mode, side))
            yield np.stack(arrays)

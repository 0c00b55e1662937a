"""Which test images a run classified correctly, so that two methods can be compared image by image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from metakm.errors import UserError
from metakm.io.files import write_text

FILE = "right.txt"
Right = npt.NDArray[np.float64]
"""1 for each test image that is classified correctly, else 0, in the order of the test part, `[n]`."""


def write_right(folder: Path, right: Right) -> None:
    """Write right.txt: a line of 1s and 0s."""
    write_text(folder / FILE, "".join("1" if each else "0" for each in right) + "\n")


def read_right(folder: Path, images: int) -> Right | None:
    """Inverse of `write_right`; None without a file.

    Raises:
        UserError: a file of anything but `images` 1s and 0s, or one that cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Expected a line of 1s and 0s in {FILE}, got {error}; run the method again") from error
    if len(text) != images or set(text) - {"0", "1"}:
        raise UserError(f"Expected {images} 1s and 0s in {FILE}, got {len(text)} characters; run the method again")
    return np.array([float(each) for each in text])

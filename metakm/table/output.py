"""Write a table to standard output or a file, and its picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from metakm.errors import UserError
from metakm.io.figure import import_matplotlib
from metakm.io.files import atomic_write, write_text

PictureFormat = Literal["png", "svg", "pdf"]


def picture_format(path: Path) -> PictureFormat:
    """The format of a picture by its file extension; call this before any work starts.

    Raises:
        UserError: another extension, or matplotlib is not installed.
    """
    forms: tuple[PictureFormat, ...] = get_args(PictureFormat)
    for form in forms:
        if path.suffix == f".{form}":
            import_matplotlib("--plot")
            return form
    raise UserError(f"Expected --plot to end in .png, .svg or .pdf, got {path}; rename it")


def write_table(text: str, out: Path | None, plot: Path | None, picture: Callable[[], bytes] | None) -> None:
    """Draw the picture to `plot`, if there is one; write the text to `out`, or print it.

    Raises:
        UserError: a file that cannot be written.
    """
    try:
        if plot is not None and picture is not None:
            with atomic_write(plot) as file:
                file.write(picture())
        if out is not None:
            write_text(out, text)
    except OSError as error:
        raise UserError(f"Expected files that can be written, got {error}; choose another --out or --plot") from error
    if out is None:
        print(text, end="")  # noqa: T201

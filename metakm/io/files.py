"""Paths with ~, and atomic writes: a file that matters is written completely or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from metakm.errors import UserError

SUFFIX = ".partial"


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` for writing; rename it to `path` if the block succeeds.

    A reader sees the old file or the new one, never half of one. If the block raises, `path` is untouched and the
    temporary file is removed. If the process is killed, the temporary file `.<name>.<8 letters>.partial` stays until
    `path` is written again: each writer locks its temporary file, so an unlocked one is a leftover.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        handle, temporary = _temporary(path)
    except OSError as error:
        error.filename = str(path)  # not the temporary file's, which the user never asked for
        raise
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def expanded(path: str | Path, what: str) -> Path:
    """`path` with ~ as the user's home.

    Raises:
        UserError: the home of an unknown user; `what` names where the path was given.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"Expected {what} to be a path, got {path} ({error}); write it without ~") from error


def write_text(path: Path, text: str) -> None:
    """Replace `path` by a UTF-8 file that holds `text`; undecodable bytes of file names stay as they were."""
    with atomic_write(path) as file:
        file.write(text.encode(errors="surrogateescape"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _temporary(path: Path) -> tuple[int, Path]:
    """A new locked file; created again in the rare case that a clean-up removed it before it was locked."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=SUFFIX, dir=path.parent)
        with contextlib.suppress(OSError):  # a file system without locks, where nobody cleans up
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)


def _remove_leftovers(path: Path) -> None:
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.????????{SUFFIX}"):
        with contextlib.suppress(OSError), leftover.open("rb") as file:  # in use, or gone
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()

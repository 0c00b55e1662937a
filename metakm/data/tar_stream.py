"""Read a tar.xz archive from beginning to end, because xz does not allow seeking.

Nothing is extracted. A damaged or hostile archive uses limited memory and raises a UserError.
"""

from __future__ import annotations

import lzma
import tarfile
from collections.abc import Generator
from pathlib import Path
from typing import IO

from metakm.errors import UserError

LARGEST_ARCHIVE = 2**30
"""Bytes of one unpacked archive, far above any of these datasets."""


class _Bounded:
    """The unpacked bytes of an archive, up to `LARGEST_ARCHIVE` of them."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path, self._count = file, path, 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._count += len(data)
        if self._count > LARGEST_ARCHIVE:
            raise UserError(
                f"Expected an archive that unpacks to at most {LARGEST_ARCHIVE} bytes, got more from {self._path}; "
                "fetch it again"
            )
        return data


def tar_files(path: Path, largest: int) -> Generator[tuple[str, bytes]]:
    """Yield name and content of each regular file of an archive, in its order; links and devices are skipped.

    Raises:
        UserError: the archive is damaged or truncated, or a file has more than `largest` bytes.
    """
    try:
        with lzma.open(path) as unpacked:
            stream = _Bounded(unpacked, path)
            with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
                for member in archive:
                    if member.isreg() and (file := archive.extractfile(member)) is not None:
                        yield member.name, read_bounded(file, f"{path}: {member.name}", largest)
            while stream.read(2**20):  # xz's checksum is at the end
                pass
    except (tarfile.TarError, lzma.LZMAError, OSError, EOFError, ValueError) as error:
        raise UserError(f"Expected a readable file, got {error} from {path}; fetch it again") from error


def read_bounded(file: IO[bytes], where: str, largest: int) -> bytes:
    """The content of one file, whatever length its header claims; raises UserError above `largest` bytes."""
    data = file.read(largest + 1)
    if len(data) > largest:
        raise UserError(f"Expected a file of at most {largest} bytes, got more from {where}; fetch it again")
    return data

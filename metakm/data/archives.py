"""Where image files come from: a zip or tar.xz archive, read in memory and never extracted, or a folder."""

from __future__ import annotations

import abc
import contextlib
import hashlib
import json
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from metakm.data.hidden import is_hidden
from metakm.data.tar_stream import read_bounded, tar_files
from metakm.errors import UserError

Read = Callable[[str], bytes]
LARGEST_FILE = 64 * 2**20
"""Bytes of one unpacked file, far above any image of these datasets. A larger one is damaged or hostile."""


class Source(abc.ABC):
    """Files under '/'-separated names."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()  # "." has no name

    @abc.abstractmethod
    def names(self) -> list[str]:
        """List the files, sorted. Raises UserError if they cannot be listed."""

    @abc.abstractmethod
    def reader(self) -> contextlib.AbstractContextManager[Read]:
        """Open for reading: yields a function that maps a name to the file's bytes, and raises UserError."""

    @abc.abstractmethod
    def stamps(self) -> list[tuple[str, int, int, int]]:
        """Name, size, time of the content and of the last change of every file that the content depends on."""


class Member(NamedTuple):
    """One file of a source."""

    source: Source
    name: str

    @property
    def where(self) -> str:
        """The file's name for messages."""
        return f"{self.source.path}: {self.name}"


class ZipSource(Source):
    """The members of a zip archive."""

    def names(self) -> list[str]:
        """List the members that are files."""
        with self._archive() as archive:
            return sorted(info.filename for info in archive.infolist() if not info.is_dir())

    @contextlib.contextmanager
    def reader(self) -> Iterator[Read]:
        """Keep the archive open; every read checks the member's CRC."""
        with self._archive() as archive:

            def read(name: str) -> bytes:
                where = f"{self.path}: {name}"
                try:
                    with archive.open(name) as file:
                        return read_bounded(file, where, LARGEST_FILE)
                except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, LookupError) as error:
                    raise _unreadable(where, error) from error
                except (RuntimeError, ValueError) as error:  # encrypted, or an unknown compression method
                    raise _unreadable(where, error) from error

            yield read

    def stamps(self) -> list[tuple[str, int, int, int]]:
        """The archive's own name, size and times."""
        return [_stamp(self.path, self.path.name)]

    def _archive(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
            raise _unreadable(str(self.path), error) from error


class TarSource(Source):
    """The files of a tar.xz archive. It is read from its beginning every time, see `tar_stream.py`."""

    def names(self) -> list[str]:
        """List the members that are files."""
        return sorted(name for name, _ in tar_files(self.path, LARGEST_FILE))

    @contextlib.contextmanager
    def reader(self) -> Iterator[Read]:
        """Keep the unpacked files in memory; xz checks the archive as a whole."""
        files = dict(tar_files(self.path, LARGEST_FILE))

        def read(name: str) -> bytes:
            if name not in files:
                raise UserError(f"Expected a readable file, got no {name} in {self.path}; fetch it again")
            return files[name]

        yield read

    def first(self, names: Collection[str]) -> dict[str, bytes]:
        """Read some files, and no more of the archive than needed. Raises UserError if one is missing."""
        found: dict[str, bytes] = {}
        with contextlib.closing(tar_files(self.path, LARGEST_FILE)) as files:
            for name, data in files:
                if name in names:
                    found[name] = data
                if len(found) == len(names):
                    return found
        absent = ", ".join(sorted(set(names) - set(found)))
        raise UserError(f"Expected {absent} in {self.path}, got none; fetch it again")

    def stamps(self) -> list[tuple[str, int, int, int]]:
        """The archive's own name, size and times."""
        return [_stamp(self.path, self.path.name)]


_LINKED_LEVELS = 2  # a class lies at most one level down, in the folder of a split


class FolderSource(Source):
    """The files below a folder; their names begin with the folder's own name, as in an archive of it."""

    def names(self) -> list[str]:
        """List the files at any depth, without hidden ones and those in hidden folders (see `is_hidden`).

        Links to folders are followed in the upper two levels, where classes are, if they lead elsewhere: a link into
        this folder would list its files twice, and one to a parent folder would never end.
        """
        return [name for name, _ in self._walk()]

    @contextlib.contextmanager
    def reader(self) -> Iterator[Read]:
        """Nothing is kept open."""

        def read(name: str) -> bytes:
            path = self.path.parent / name
            try:
                if path.exists() and not path.is_file():
                    raise OSError("something that is not a file")  # a named pipe would wait forever
                with path.open("rb") as file:
                    return read_bounded(file, str(path), LARGEST_FILE)
            except (OSError, ValueError) as error:
                raise _unreadable(str(path), error) from error

        yield read

    def stamps(self) -> list[tuple[str, int, int, int]]:
        """Name, size and times of every file below the folder."""
        return [_stamp(path, name) for name, path in self._walk()]

    def _walk(self) -> list[tuple[str, Path]]:
        found = []
        for folder, folders, files in os.walk(self.path, onerror=_refuse_folder, followlinks=True):
            shown = [name for name in folders if not is_hidden(name)]
            folders[:] = [name for name in shown if self._should_enter(Path(folder, name))]
            start = Path(folder).relative_to(self.path.parent).as_posix()
            found += [(f"{start}/{file}", Path(folder, file)) for file in files if not is_hidden(file)]
        return sorted(found)

    def _should_enter(self, folder: Path) -> bool:
        """Whether to enter a folder: it is no link, or one to follow."""
        if not folder.is_symlink():
            return True
        top, here, target = self.path.resolve(), folder.parent.resolve(), folder.resolve()
        elsewhere = not (target.is_relative_to(top) or top.is_relative_to(target) or here.is_relative_to(target))
        return elsewhere and len(folder.relative_to(self.path).parts) <= _LINKED_LEVELS


_ARCHIVES: dict[str, type[Source]] = {".zip": ZipSource, ".tar.xz": TarSource}


def fingerprint(version: str, sources: Iterable[Source], files: Iterable[Path] = ()) -> str:
    """Hash the stamps of sources and single files, and the version of the code that decodes: 16 hex digits."""
    stamps = [source.stamps() for source in sources] + [[_stamp(path, path.name)] for path in files]
    return hashlib.sha256(json.dumps([version, stamps]).encode()).hexdigest()[:16]


def find_source(folders: Iterable[Path], names: Iterable[str]) -> Source | None:
    """Find the first folder that holds one of the names: a `.zip`, a `.tar.xz` or a folder. None if there is none."""
    wanted = list(names)
    for folder in folders:
        for name in wanted:
            path = folder / name
            archive = next((kind for suffix, kind in _ARCHIVES.items() if name.endswith(suffix)), None)
            if archive is not None and path.is_file():
                return archive(path)
            if archive is None and path.is_dir():
                return FolderSource(unwrap_folder(path))
    return None


def require_source(roots: Iterable[Path], folder: str, names: Sequence[str], remedy: str) -> Source:
    """The first of the names in `folder` below one of the roots, or in a root itself; see `find_source`.

    Raises:
        UserError: there is none; `remedy` says how to get one.
    """
    folders = [root / sub for root in roots for sub in (folder, ".")]
    source = find_source(folders, names)
    if source is None:
        raise missing(" or ".join(names), folders, remedy)
    return source


def unwrap_folder(path: Path) -> Path:
    """The folder, or its only subfolder if that has the same name, as unpacking into such a folder makes it."""
    inner = path / path.absolute().name
    if not inner.is_dir():
        return path
    with os.scandir(path) as entries:
        others = any(not is_hidden(entry.name) and entry.name != inner.name for entry in entries)
    return path if others else inner


def missing(wanted: str, folders: Iterable[Path], remedy: str) -> UserError:
    """Build the error for a missing dataset."""
    places = [*map(str, folders)]
    got = "none" if any(map(os.path.exists, places)) else "no such folder"
    where = f"one of {', '.join(places)}" if len(places) > 1 else places[0]
    return UserError(f"Expected {wanted} in {where}, got {got}; {remedy}. (--dataset glyphs needs no files.)")


def _stamp(path: Path, name: str) -> tuple[str, int, int, int]:
    try:
        status = path.stat() if path.exists() else path.lstat()  # a dangling link may not be among the files to read
    except OSError as error:
        raise _unreadable(str(path), error) from error
    return name, status.st_size, status.st_mtime_ns, status.st_ctime_ns  # of which an archive sets all but the last


def _refuse_folder(error: OSError) -> None:  # which os.walk would leave out, with its images
    raise UserError(f"Expected a folder that can be read, got {error}; change its permissions") from error


def _unreadable(where: str, error: Exception) -> UserError:
    return UserError(f"Expected a readable file, got {error} from {where}; fetch it again")

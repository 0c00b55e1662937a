"""Optuna's journal file with all trials of a search, behind a lock that is released when a process is killed."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend


class WaitingLock:
    """A context for one process at a time; the others wait. The kernel releases the lock if a process is killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Wait for the lock."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def release(self) -> None:
        """Let others have it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> WaitingLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class _JournalLock:
    """Optuna's own lock waits half a minute after its process was killed."""

    def __init__(self, journal: Path) -> None:
        self._journal, self._lock = journal, WaitingLock(journal.with_name(f".{journal.name}.lock"))

    def acquire(self) -> bool:
        self._lock.acquire()
        _drop_half_line(self._journal)
        return True

    def release(self) -> None:
        self._lock.release()


def open_journal(path: Path) -> JournalStorage:
    """Open the storage in a file, and create it if needed."""
    # Duck-typed: it has the methods that the backend calls; their base class is not public.
    lock: Any = _JournalLock(path)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _drop_half_line(path: Path) -> None:
    """Remove the incomplete line of a process that was killed while writing, or the next line would be joined to it."""
    with path.open("rb+") as file:
        data = file.read()
        if data and not data.endswith(b"\n"):
            file.truncate(data.rfind(b"\n") + 1)

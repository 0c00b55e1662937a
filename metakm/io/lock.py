"""A lock that lets one process at a time use a folder: an OS lock on a file that names its holder.

The lock is `flock`, which the kernel releases when the process ends, however it ends. So a killed process blocks
nobody, and what it leaves in the file is only text. On NFS, Linux takes the lock on the server, so it works across
machines. With mount options that keep locks local (`local_lock` on NFS, `localflock` on Lustre), machines do not see
each other's locks. If a file system has no locks at all, the text decides: its process counts as alive unless it ran on
this machine and is gone.

filelock was tried in its place. It cannot probe a lock without writing, and does not fall back to the holder's process
where a file system reports that it has no locks.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from metakm.errors import UserError

ATTEMPTS, PAUSE_SECONDS = 5, 0.05  # `holder` takes the lock for a moment, which must not be mistaken for a run
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


class InUseError(UserError):
    """The folder is in use by a running process."""


class Holder(NamedTuple):
    """The process that took a lock."""

    pid: int
    host: str
    since: str  # UTC, ISO 8601

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


class Lock:
    """A lock on the folder of `path`; the file exists only while the lock is held, or after its holder was killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self) -> None:
        """Take the lock, and write this process to the file.

        Raises:
            InUseError: another process, or another `Lock` of this one, has it; the message names the holder.
        """
        for _ in range(ATTEMPTS):
            if self._descriptor is None and self._try():
                return
            time.sleep(PAUSE_SECONDS)
        raise InUseError(
            f"Expected a folder that no other process is working in, got {self.path.parent}, used by "
            f"{_read(self.path) or 'another process'}; wait for it to end, or choose another --out (the lock is "
            f"{self.path.name} there)"
        )

    def release(self) -> None:
        """Release the lock and remove the file, if this object holds the lock."""
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):  # the folder was removed or became read-only; closing releases the lock
            self.path.unlink()
        os.close(self._descriptor)
        self._descriptor = None

    def _try(self) -> bool:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not (_lock(descriptor, self.path, fcntl.LOCK_EX) and _is_open_at(descriptor, self.path)):
                os.close(descriptor)
                return False
            holder = Holder(os.getpid(), socket.gethostname(), datetime.now(timezone.utc).isoformat(timespec="seconds"))
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(holder._asdict()).encode())
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True


def holder(path: Path) -> str | None:
    """A description of who holds the lock at `path`; None if nobody does. Writes nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        free = _lock(descriptor, path, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)
    return None if free else str(_read(path) or "another process")


def _lock(descriptor: int, path: Path, kind: int) -> bool:
    """Take the lock if it is free, and return whether it was."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        written = _read(path)
        return written is None or (written.host == socket.gethostname() and not _alive(written.pid))
    return True


def _is_open_at(descriptor: int, path: Path) -> bool:
    """Whether `path` still is the open file; its last holder may just have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _read(path: Path) -> Holder | None:
    try:
        written = json.loads(path.read_bytes())
        return Holder(int(written["pid"]), str(written["host"]), str(written["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's process
        return True
    return True

"""A heartbeat between the processes of a run, which works whatever they are busy with.

gloo cannot tell a busy process from a dead one, and torchrun only watches the processes of its own host. So each
process keeps a connection to process 0, and a thread that sends a line over it every half second. A process that exits,
even if it is killed, closes its connection at once; a host that loses its network falls silent. Only silence counts: a
process may validate, download or read for hours, because its thread keeps sending. Process 0 tells the others which
process is lost.

A process that loses another one exits at once, from this thread: the main thread is inside torch and cannot be
interrupted. No file is damaged, because each is replaced as a whole (`metakm/io/files.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

BEAT_SECONDS = 0.5
# Beats sent without one received. They are counted, not timed, so that a machine that wakes from suspension does not
# consider the others lost.
SILENT_BEATS = 60
# Beats to wait after a process has reported its own error, because this one may be about to raise the same error.
GRACE_BEATS = 10
SHUTDOWN_SECONDS = 10.0  # the files to write may be on the host that is cut off


class LostProcess(NamedTuple):
    """A process that is lost, and how; `reported` if the process said so itself."""

    rank: int
    how: str
    reported: bool = False


class Tally(NamedTuple):
    """How much a process has done of the current count, which has this number."""

    number: int
    done: int


class Peer:
    """The connection to another process, which sends lines of JSON: its tally with each beat, and a farewell.

    The farewell is the loss that makes it exit, or null.
    """

    def __init__(self, rank: int, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.rank, self.connection = rank, connection
        self.silent, self.left = 0, False
        self.tally = Tally(0, 0)
        self._farewell: list[LostProcess | None] = []
        self._unread = b""

    def send(self, **message: object) -> None:
        """Send without waiting. The other end notices what does not arrive."""
        with contextlib.suppress(OSError):
            self.connection.send(json.dumps(message).encode() + b"\n")

    def listen(self) -> LostProcess | None:
        """Read what has arrived since the last call, one beat ago; return the process that is lost, if any."""
        self.silent += 1
        try:
            while received := self.connection.recv(1 << 16):
                self.silent = 0
                *lines, self._unread = (self._unread + received).split(b"\n")
                for line in lines:
                    self._handle(**json.loads(line))
        except BlockingIOError:
            silence = f"no sign of life for {SILENT_BEATS * BEAT_SECONDS:g} seconds"
            return LostProcess(self.rank, silence) if self.silent >= SILENT_BEATS else None
        except OSError:  # reset, which is closed
            pass
        self.connection.close()
        if not self._farewell:
            return LostProcess(self.rank, "it closed its connection, probably killed")
        self.left = self._farewell[0] is None
        return self._farewell[0]

    def _handle(self, tally: tuple[int, int] | None = None, farewell: tuple[int, str] | None = None) -> None:
        if tally is not None:
            self.tally = Tally(*tally)
        elif farewell is None:
            self._farewell = [None]
        else:
            rank, how, *_ = farewell
            self._farewell = [LostProcess(rank, how, reported=rank == self.rank)]


class Watch:
    """Watches the processes at the other end of `connections`, by rank, until it is closed.

    Args:
        lost: called in a thread when a process is lost; then, or after 10 seconds, this one exits with code 1.
    """

    def __init__(
        self, rank: int, connections: Mapping[int, socket.socket], lost: Callable[[LostProcess], None]
    ) -> None:
        self.rank, self._lost = rank, lost
        self._peers = [Peer(*item) for item in connections.items()]
        self._tally = Tally(0, 0)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="metakm-watch", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def guard_collective(self) -> Iterator[None]:
        """Wrap a collective of torch: if it fails because a process was lost, exit and report that process."""
        try:
            yield
        except RuntimeError:
            self._thread.join((SILENT_BEATS + GRACE_BEATS) * BEAT_SECONDS + SHUTDOWN_SECONDS)
            raise

    def begin_count(self) -> None:
        """Start a new count at zero. Every process must call it."""
        self._tally = Tally(self._tally.number + 1, 0)

    def count(self, done: int) -> int:
        """Add what this process has done; return the sum with what the others have reported since the count began.

        Process 0 hears from all, half a second late; the others hear from process 0 only.
        """
        self._tally = Tally(self._tally.number, self._tally.done + done)
        tallies = (self._tally, *(peer.tally for peer in self._peers))
        return sum(tally.done for tally in tallies if tally.number == self._tally.number)

    def close(self, error: BaseException | None = None) -> None:
        """Stop watching. The others see no loss, unless this process ends by an error that they do not have."""
        self._closing.set()
        self._thread.join()
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        self._leave(None if error is None else LostProcess(self.rank, f"it ended by {said}"))

    def _work(self) -> None:
        while not self._closing.wait(BEAT_SECONDS):
            for peer in self._peers:
                peer.send(tally=self._tally)
            losses = [loss for loss in map(Peer.listen, self._peers) if loss is not None]
            self._peers = [peer for peer in self._peers if not peer.left]
            if losses and not (losses[0].reported and self._closing.wait(GRACE_BEATS * BEAT_SECONDS)):
                self._end(losses[0])

    def _end(self, loss: LostProcess) -> None:
        self._leave(loss)
        last_acts = threading.Thread(target=self._lost, args=(loss,), daemon=True)
        last_acts.start()
        last_acts.join(SHUTDOWN_SECONDS)
        os._exit(1)

    def _leave(self, farewell: LostProcess | None) -> None:
        for peer in self._peers:
            peer.send(farewell=farewell)
            peer.connection.close()

"""Whether the other processes of a run still live, whatever they are busy with.

gloo cannot tell a process that computes from one that is gone, and torchrun looks after the processes of one host only.
So each process has a connection to process 0, and a thread that sends a line over it every half second. A process that
ends, even if it is killed, closes its connection at once; a host whose link is cut falls silent. Nothing but silence
counts: a process may validate, download or read for hours, because its thread goes on sending. Process 0 tells the
others whom it has lost.

A process that loses another one ends at once, from this thread: the main thread waits inside torch, or computes, and
cannot be interrupted. No file suffers, as each is replaced whole (`metakm/io/files.py`).
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
# Beats sent without one received. They are counted instead of timed, so that a machine that was suspended does not take
# the others for lost when it wakes up.
SILENT_BEATS = 60
# Beats to wait after a process has reported its own error, as this one may be about to end by the same.
GRACE_BEATS = 10
LAST_ACTS_SECONDS = 10.0  # the files to be written may lie behind the link that was cut


class Loss(NamedTuple):
    """A process that is gone, and how; `reported` if that is its own word."""

    rank: int
    how: str
    reported: bool = False


class Tally(NamedTuple):
    """What a process has done of the count at hand, of this number."""

    number: int
    done: int


class Peer:
    """The connection to another process, which sends JSON in lines: its tally as a beat, and a farewell.

    The farewell is the loss because of which it ends, or null.
    """

    def __init__(self, rank: int, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.rank, self.connection = rank, connection
        self.silent, self.left = 0, False
        self.tally = Tally(0, 0)
        self._farewell: list[Loss | None] = []
        self._unread = b""

    def send(self, **message: object) -> None:
        """Send without waiting. What does not arrive is missed at the other end."""
        with contextlib.suppress(OSError):
            self.connection.send(json.dumps(message).encode() + b"\n")

    def listen(self) -> Loss | None:
        """Take in what has arrived since the last call, a beat ago; return whom that tells to be lost."""
        self.silent += 1
        try:
            while received := self.connection.recv(1 << 16):
                self.silent = 0
                *lines, self._unread = (self._unread + received).split(b"\n")
                for line in lines:
                    self._understand(**json.loads(line))
        except BlockingIOError:
            silence = f"no sign of life for {SILENT_BEATS * BEAT_SECONDS:g} seconds"
            return Loss(self.rank, silence) if self.silent >= SILENT_BEATS else None
        except OSError:  # reset, which is closed
            pass
        self.connection.close()
        if not self._farewell:
            return Loss(self.rank, "it ended without a word, as if killed")
        self.left = self._farewell[0] is None
        return self._farewell[0]

    def _understand(self, tally: tuple[int, int] | None = None, farewell: tuple[int, str] | None = None) -> None:
        if tally is not None:
            self.tally = Tally(*tally)
        elif farewell is None:
            self._farewell = [None]
        else:
            rank, how, *_ = farewell
            self._farewell = [Loss(rank, how, reported=rank == self.rank)]


class Watch:
    """Looks after the processes at the other end of `connections`, by their rank, until it is closed.

    Args:
        lost: called in a thread when a process is lost; then, or after 10 seconds, this one ends with exit code 1.
    """

    def __init__(self, rank: int, connections: Mapping[int, socket.socket], lost: Callable[[Loss], None]) -> None:
        self.rank, self._lost = rank, lost
        self._peers = [Peer(*item) for item in connections.items()]
        self._tally = Tally(0, 0)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="metakm-watch", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def judging(self) -> Iterator[None]:
        """Around what torch does with other processes: if it fails, end with the process that was lost, if one was."""
        try:
            yield
        except RuntimeError:
            self._thread.join((SILENT_BEATS + GRACE_BEATS) * BEAT_SECONDS + LAST_ACTS_SECONDS)
            raise

    def begin_count(self) -> None:
        """Begin to count from zero; to be called by all processes alike."""
        self._tally = Tally(self._tally.number + 1, 0)

    def count(self, done: int) -> int:
        """Add what this process has done; return the sum with what the others have told of since the count began.

        Process 0 is told by all, half a second late; the others by process 0 alone.
        """
        self._tally = Tally(self._tally.number, self._tally.done + done)
        tallies = (self._tally, *(peer.tally for peer in self._peers))
        return sum(tally.done for tally in tallies if tally.number == self._tally.number)

    def close(self, error: BaseException | None = None) -> None:
        """Leave, which is no loss to the others unless it is by an error that they do not meet themselves."""
        self._closing.set()
        self._thread.join()
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        self._part(None if error is None else Loss(self.rank, f"it ended by {said}"))

    def _work(self) -> None:
        while not self._closing.wait(BEAT_SECONDS):
            for peer in self._peers:
                peer.send(tally=self._tally)
            losses = [loss for loss in map(Peer.listen, self._peers) if loss is not None]
            self._peers = [peer for peer in self._peers if not peer.left]
            if losses and not (losses[0].reported and self._closing.wait(GRACE_BEATS * BEAT_SECONDS)):
                self._end(losses[0])

    def _end(self, loss: Loss) -> None:
        self._part(loss)
        last_acts = threading.Thread(target=self._lost, args=(loss,), daemon=True)
        last_acts.start()
        last_acts.join(LAST_ACTS_SECONDS)
        os._exit(1)

    def _part(self, farewell: Loss | None) -> None:
        for peer in self._peers:
            peer.send(farewell=farewell)
            peer.connection.close()

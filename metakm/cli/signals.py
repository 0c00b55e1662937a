"""Ctrl-C and SIGTERM ask a run to stop at the next safe point; a second one stops it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Protocol

from metakm.cli.progress import log_line


class StopRequest:
    """A context in which the first SIGINT or SIGTERM sets `requested` instead of raising.

    Args:
        once: ignore further signals. A cluster sends several, and kills what takes too long.
    """

    def __init__(self, *, once: bool = False) -> None:
        self.requested, self.once = False, once
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.requested:
            if self.once:
                return
            raise KeyboardInterrupt
        self.requested = True
        if number == signal.SIGINT:  # SIGTERM comes from a program, such as torchrun after it has lost a process
            again = "" if self.once else "; once more to stop at once"
            log_line(f"Stopping at the next safe point{again}.")


class Stoppable(Protocol):
    """Anything that knows whether a stop was requested."""

    @property
    def requested(self) -> bool:
        """Whether the work should end."""


def stop_on_request(stop: Stoppable, progress: Callable[[int], None]) -> Callable[[int], None]:
    """A `progress` callback that does its work and then raises StopIteration if a stop was requested."""

    def advance(done: int) -> None:
        progress(done)
        if stop.requested:
            raise StopIteration

    return advance

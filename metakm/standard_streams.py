"""Standard output and error that a command can always write to."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO, cast


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Within the block, what is printed to a reader that has gone (`| head`), or to no stream at all (`2>&-`), is lost.

    The command goes on, and its exit code is what it would have been. At the end of the block both are flushed.

    Raises:
        OSError: at the end, what was printed cannot be written for another reason, such as a full disk.
    """
    _occupy_standard_descriptors()
    with contextlib.ExitStack() as stack:
        output, error = (_lasting(stream, stack) for stream in (sys.stdout, sys.stderr))
        stack.enter_context(contextlib.redirect_stdout(output))
        stack.enter_context(contextlib.redirect_stderr(error))
        try:
            yield
        finally:
            output.flush()
            error.flush()


class _Lasting:
    """A stream that turns to nowhere once its reader has gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._turn_away(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._turn_away(error)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def _turn_away(self, error: OSError) -> None:
        """Point the descriptor to nowhere, also for what the stream has kept, and for libraries that write to it.

        Raises:
            OSError: `error`, unless it is that the reader has gone.
        """
        nowhere = os.open(os.devnull, os.O_WRONLY)
        with contextlib.suppress(OSError):  # a stream without a descriptor
            os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        if not isinstance(error, BrokenPipeError):
            raise error


def _lasting(stream: TextIO | None, stack: contextlib.ExitStack) -> TextIO:
    if stream is None:
        stream = stack.enter_context(open(os.devnull, "w"))  # noqa: PTH123 (not a path of ours)
    return cast(TextIO, _Lasting(stream))


def _occupy_standard_descriptors() -> None:
    """Open the closed ones of 0, 1 and 2, so that no file of ours gets their number, and with it what libraries print."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free

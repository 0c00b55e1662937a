"""Standard output and error that a command can always write to."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO, cast


@contextlib.contextmanager
def robust_streams() -> Iterator[None]:
    """Within the block a command goes on, to the exit code of its work, when nobody reads what it prints.

    Standard output or error then leads nowhere: after the reader has gone (`| head`, a closed terminal), or where there
    is none (`2>&-`, daemons, windowed programs). At the end of the block both are flushed.

    Raises:
        OSError: at the end, what was printed cannot be written for another reason, such as a full disk.
    """
    _reserve_standard_descriptors()
    with contextlib.ExitStack() as stack:
        output, error = (_robust(stream, stack) for stream in (sys.stdout, sys.stderr))
        stack.enter_context(contextlib.redirect_stdout(output))
        stack.enter_context(contextlib.redirect_stderr(error))
        try:
            yield
        finally:
            output.flush()
            error.flush()


class _RobustStream:
    """A stream that turns to nowhere once its reader has gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._terminal = stream, stream.isatty()  # a terminal that has gone is none any more

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._redirect_to_null(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._redirect_to_null(error)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def _redirect_to_null(self, error: OSError) -> None:
        """Point the descriptor to nowhere, also for what the stream has kept, and for libraries that write to it.

        Raises:
            OSError: `error`, unless it is that the reader has gone.
        """
        nowhere = os.open(os.devnull, os.O_WRONLY)
        with contextlib.suppress(OSError):  # a stream without a descriptor
            os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        gone = isinstance(error, BrokenPipeError) or (self._terminal and error.errno == errno.EIO)
        if not gone:
            raise error


def _robust(stream: TextIO | None, stack: contextlib.ExitStack) -> TextIO:
    if stream is None:
        stream = stack.enter_context(Path(os.devnull).open("w"))  # noqa: SIM115 (the stack closes it)
    return cast(TextIO, _RobustStream(stream))


def _reserve_standard_descriptors() -> None:
    """Open the closed ones of 0, 1 and 2, so that no file gets their number, and what libraries print."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free

"""Standard output and error that can always be written to."""

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
    """Within the block, a command keeps working when nobody reads what it prints, and ends with its usual exit code.

    Output is discarded once its reader is gone (`| head`, a closed terminal), or if there never was one (`2>&-`,
    daemons, GUI programs). Both streams are flushed at the end of the block.

    Raises:
        OSError: at the end, if output cannot be written for another reason, such as a full disk.
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
    """A stream that discards what is written once its reader is gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._terminal = stream, stream.isatty()  # asked now, because a closed terminal is no longer one

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:  # a letter that the terminal does not have, a file's name that is no UTF-8
            encoding = self._stream.encoding
            return self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
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
        """Point the descriptor at the null device, for buffered output and for libraries that write to it, too.

        Raises:
            OSError: `error`, unless it says that the reader is gone.
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
    """Open those of 0, 1 and 2 that are closed, or a file would get the number, and with it what libraries print."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number

"""What ends a command early, as its exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from metakm.errors import UserError

CLOSED = 141  # as a shell has it of a process that SIGPIPE ended


def exit_code(command: Callable[[], int], again: str = "add --resume to the same command") -> int:
    """Call a command; print what ended it early, and how to go on.

    The command's own code, or 1 for a file that cannot be written, 2 for the user's mistake, 130 for an interrupt, 141
    where the reader of standard output left (`| head`). Without standard output or error, what they would show is lost.
    """
    with _streams():
        try:
            code = command()
            sys.stdout.flush()
            return code
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)  # noqa: T201
            return 2
        except BrokenPipeError:
            _drop_output()
            return CLOSED
        except OSError as error:
            print(f"error: {error}; fix this, then {again}", file=sys.stderr)  # noqa: T201
            return 1
        except KeyboardInterrupt:
            print(f"Stopped. To go on from the last checkpoint, if there is one, {again}.", file=sys.stderr)  # noqa: T201
            return 130


@contextlib.contextmanager
def _streams() -> Iterator[None]:
    """In the block there are standard output and error; a process without a terminal may have none."""
    missing = [name for name in ("stdout", "stderr") if getattr(sys, name) is None]
    with contextlib.ExitStack() as stack:
        for name in missing:
            setattr(sys, name, stack.enter_context(Path(os.devnull).open("w", encoding="utf-8")))
        try:
            yield
        finally:
            for name in missing:
                setattr(sys, name, None)


def _drop_output() -> None:
    """Have what is still to be written go nowhere, or the interpreter complains when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

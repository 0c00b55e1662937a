"""What ends a command, as its exit code."""

from __future__ import annotations

from collections.abc import Callable

from metakm.cli.progress import log_line
from metakm.cli.standard_streams import robust_streams
from metakm.errors import UserError


def exit_code(
    command: Callable[[], int], again: str = "add --resume to the same command", *, resumes: bool = True
) -> int:
    """Call a command; print what ended it early, and how to go on. See `robust_streams` for where it prints.

    The command's own code, or 1 for a file that cannot be written, 2 for the user's mistake, 130 for an interrupt.

    Args:
        resumes: whether the command writes checkpoints.
    """
    stopped = f"Stopped. To go on from the last checkpoint, if there is one, {again}." if resumes else "Stopped."
    try:
        with robust_streams():
            return _exit_code(command, again, stopped)
    except OSError as error:  # what was printed cannot be written
        log_line(f"error: {error}; mend that, then {again}")
        return 1


def _exit_code(command: Callable[[], int], again: str, stopped: str) -> int:
    try:
        return command()
    except UserError as error:
        log_line(f"error: {error}")
        return 2
    except OSError as error:
        log_line(f"error: {error}; mend that, then {again}")
        return 1
    except KeyboardInterrupt:
        log_line(stopped)
        return 130

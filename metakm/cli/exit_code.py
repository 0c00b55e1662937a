"""The exit code of a command, from its result or its error."""

from __future__ import annotations

from collections.abc import Callable

from metakm.cli.progress import log_line
from metakm.cli.standard_streams import robust_streams
from metakm.errors import UserError

INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""

REPEAT = "repeat the same command"
RESUME = "add --resume to the same command"


def exit_code(command: Callable[[], int], continued_by: str | None = None) -> int:
    """Call a command. If it ends early, print why and what to do next; see `robust_streams` for where.

    Returns the command's own code, or 1 for a file that cannot be written, 2 for a user error, 130 for an interrupt.

    Args:
        continued_by: what goes on where the command stopped, `REPEAT` or `RESUME`; None if it begins anew.
    """
    again = continued_by or REPEAT
    stopped = (
        f"Stopped. To continue from the last checkpoint, if there is one, {again}." if continued_by else "Stopped."
    )
    try:
        with robust_streams():
            return _exit_code(command, again, stopped)
    except OSError as error:  # what was printed cannot be written
        log_line(f"error: {error}; fix this, then {again}")
        return 1


def _exit_code(command: Callable[[], int], again: str, stopped: str) -> int:
    try:
        return command()
    except UserError as error:
        log_line(f"error: {error}")
        return 2
    except OSError as error:
        log_line(f"error: {error}; fix this, then {again}")
        return 1
    except KeyboardInterrupt:
        log_line(stopped)
        return INTERRUPTED

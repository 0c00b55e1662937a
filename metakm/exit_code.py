"""What ends a command that makes runs, as its exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable

from metakm.errors import UserError


def exit_code(command: Callable[[], int], again: str = "add --resume to the same command") -> int:
    """Call a command that makes runs; print what ended it early, and how to go on.

    The command's own code, or 1 for a file that cannot be written, 2 for the user's mistake, 130 for an interrupt.
    """
    try:
        return command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except OSError as error:
        print(f"error: {error}; mend that, then {again}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print(f"Stopped. To go on from the last checkpoint, if there is one, {again}.", file=sys.stderr)  # noqa: T201
        return 130

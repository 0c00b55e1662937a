"""What the commands of the experiments share: a run for each method, and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from metakm.allocator import keep_freed_memory
from metakm.errors import UserError
from metakm.experiments.run import ExperimentRun
from metakm.interrupt import StopRequest


def run_all(make: Callable[[str, StopRequest], ExperimentRun], methods: Iterable[str]) -> int:
    """Run one method after another until one fails; return the exit code of `main`.

    0 done, 1 diverged or a file that cannot be written, 2 the user's mistake, 130 interrupted.
    """
    keep_freed_memory()
    try:
        with StopRequest() as stop:
            for method in methods:
                code = make(method, stop).execute()
                if code:
                    return code
    except OSError as error:
        print(f"error: {error}; mend that, then add --resume to the same command", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("Stopped. Runs that have a checkpoint go on from it with --resume.", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def mistakes_end_with_2(command: Callable[[], int]) -> int:
    """Call `command`; print a UserError and return 2."""
    try:
        return command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2

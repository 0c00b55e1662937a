"""`python -m metakm.run`: meta-train one strategy and test it; writes one row."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from metakm.cli.exit_code import RESUME, exit_code
from metakm.cli.signals import StopRequest
from metakm.config.execution import how_to_resume
from metakm.distributed.processes import join_processes
from metakm.distributed.torchrun import only_first_prints
from metakm.errors import UserError
from metakm.learning.malloc import keep_freed_memory
from metakm.run.command_line import parse
from metakm.run.runner import Run


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 diverged, a process lost or a file not written, 2 the user's mistake, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    keep_freed_memory()
    with only_first_prints():
        return exit_code(lambda: _run(arguments), RESUME)


def _run(arguments: Sequence[str]) -> int:
    if any(argument.partition("=")[0] == "--evaluate" for argument in arguments):
        raise UserError("Expected flags of a run, got --evaluate; it is now `python -m metakm evaluate RUN`")
    config = parse(arguments)
    again = f"to continue from the last checkpoint, {how_to_resume(config)}"
    with StopRequest() as stop, join_processes(again) as processes:
        if processes.restarted:
            config = dataclasses.replace(config, resume=True, overwrite=False)
        with processes.raise_together(UserError):
            run = Run(config, stop, processes)
        return run.execute()


if __name__ == "__main__":
    sys.exit(main())

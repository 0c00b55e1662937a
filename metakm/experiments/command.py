"""Shared by the commands of the experiments: one run after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from metakm.cli.signals import StopRequest
from metakm.experiments.run import ExperimentRun
from metakm.learning.malloc import keep_freed_memory


def run_all(make: Callable[[str, StopRequest], ExperimentRun], methods: Iterable[str]) -> int:
    """Make and execute the run of each method until one fails or is interrupted; return the exit code of `main`.

    Only the first one's row has the process's peak memory; it would count for the others as well.
    """
    keep_freed_memory()
    with StopRequest() as stop:
        for number, method in enumerate(methods):
            run = make(method, stop)
            run.first_of_process = number == 0
            code = run.execute()
            if code:
                return code
    return 0

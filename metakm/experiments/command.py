"""Shared by the commands of the experiments: one run after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from metakm.cli.signals import StopRequest
from metakm.errors import UserError
from metakm.experiments.run import ExperimentRun
from metakm.learning.malloc import keep_freed_memory

INTERRUPTED = 130


def run_all(make: Callable[[str, StopRequest], ExperimentRun], methods: Sequence[str]) -> int:
    """Make and execute the run of each method until one is interrupted; return the exit code of `main`.

    A run that fails, such as one whose loss diverges, does not keep the others from running.

    Raises:
        UserError: no method; or whatever `make` raises.
    """
    if not methods:
        raise UserError("Expected at least one name after --methods, got none; leave --methods out for all")
    keep_freed_memory()
    codes = []
    with StopRequest() as stop:
        for method in methods:
            codes.append(make(method, stop).execute())
            if codes[-1] == INTERRUPTED:
                break
    return max(codes)

"""Shared by the commands of the experiments: one run after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from metakm.cli.exit_code import INTERRUPTED
from metakm.cli.signals import StopRequest
from metakm.errors import UserError
from metakm.experiments.config import MethodConfig
from metakm.experiments.row import ExperimentRow
from metakm.experiments.run import ExperimentRun
from metakm.learning.malloc import keep_freed_memory
from metakm.run.folder import RunFolder


def run_all(configs: Sequence[MethodConfig], make: Callable[[MethodConfig, StopRequest], ExperimentRun]) -> int:
    """Make and execute the run of each config until one is interrupted; return the exit code of `main`.

    A run that fails, such as one whose loss diverges, does not keep the others from running.

    Raises:
        UserError: no method; before the first is trained, an earlier run of any that is not to be resumed; or whatever
            `make` raises.
    """
    if not configs:
        raise UserError("Expected at least one name after --methods, got none; leave --methods out for all")
    for config in configs:
        _check_earlier_run(config)
    keep_freed_memory()
    codes = []
    with StopRequest() as stop:
        for config in configs:
            codes.append(make(config, stop).execute())
            if codes[-1] == INTERRUPTED:
                break
    return max(codes)


def _check_earlier_run(config: MethodConfig) -> None:
    """See `RunFolder.check_earlier_run`; a run of the same id has the same number of iterations."""
    how = config.execution
    if not (how.overwrite or how.dry_run):
        folder = RunFolder(config.folder, ExperimentRow)
        folder.check_earlier_run(run_id=config.run_id, resume=how.resume, iterations=0)

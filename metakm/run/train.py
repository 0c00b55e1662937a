"""Training from Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from metakm.cli.signals import StopRequest
from metakm.config import RunConfig
from metakm.data.registry import dataset_entry
from metakm.errors import UserError
from metakm.run.callbacks import Callback
from metakm.run.loading import TrainedRun, load_run
from metakm.run.own_data import OwnData, with_own_data
from metakm.run.runner import Run


def train(config: RunConfig, *, dataset: str | OwnData | None = None, callbacks: Sequence[Callback] = ()) -> TrainedRun:
    """Do what `python -m metakm.run` does: meta-train, validate, test, write the run's folder; return the run.

    Progress goes to standard error, unless `config.quiet`, and the result to standard output, unless `config.json`.

    Args:
        dataset: another one than the config's: its name; or its train, val and test splits, each a `FewShotDataset`,
            or a sampler with `batch(index, tasks)`. What the config took from its preset stays as it is.
        callbacks: called after each iteration and each validation, and at the end, in this order; see `Callback`.

    Raises:
        UserError: for anything that would make the run fail later, before it starts: see `Run`.
        DivergedError: the meta-loss or its gradient is not finite.
        TooLittleMemoryError: a single task does not fit into memory.
        KeyboardInterrupt: Ctrl-C; `dataclasses.replace(config, resume=True)` goes on.
    """
    if not isinstance(config, RunConfig):
        raise UserError(f"Expected a RunConfig, got {config!r:.100}; make one: metakm.RunConfig(algo='km', ...)")
    if config.dry_run:
        raise UserError("Expected dry_run=False to train, got True; python -m metakm.run --dry-run shows the estimate")
    config, samplers = with_own_data(config, dataset)
    with StopRequest() as stop:
        run = Run(config, stop, callbacks=callbacks, samplers=samplers)
        code = run.execute()
    if run.failure is not None:
        raise run.failure
    if code:
        raise KeyboardInterrupt
    trained = load_run(config.folder)
    return trained if samplers is None else dataclasses.replace(trained, own_data=dataset_entry(config.dataset))

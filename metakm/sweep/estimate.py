"""How long the missing runs of a plan will take, from a trial of each strategy and setting."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from metakm.cli.progress import duration
from metakm.cli.signals import Stoppable
from metakm.config import RunConfig
from metakm.errors import UserError
from metakm.learning.memory import TooLittleMemoryError
from metakm.learning.phases import Phase, seconds_of, trial_phases
from metakm.run.runner import Run
from metakm.sweep.plan import Planned


class Cost(NamedTuple):
    """Seconds on this machine."""

    phases: Sequence[Phase]  # of meta-training
    task: float  # of meta-validation or meta-test


def estimate(plan: Iterable[Planned], stop: Stoppable) -> tuple[list[Planned], float]:
    """The plan with the time of each missing run in its note, and the seconds of all together.

    Runs that differ in their seed alone share a trial. A run that cannot start is blocked.

    Raises:
        KeyboardInterrupt: a stop was requested before the last trial.
    """
    costs: dict[RunConfig, Cost | UserError] = {}
    estimated, total = [], 0.0
    for planned in plan:
        if planned.missing:
            key = dataclasses.replace(planned.config, seed=0)
            if stop.requested:
                raise KeyboardInterrupt
            costs[key] = cost = costs.get(key) or measure(key, stop)
            if isinstance(cost, Cost):
                seconds = seconds_left(planned, cost)
                total += seconds
                planned = planned._replace(note=f"{planned.note} about {duration(seconds)}".lstrip())
            else:
                planned = planned._replace(state="blocked", note=str(cost))
        estimated.append(planned)
    return estimated, total


def measure(config: RunConfig, stop: Stoppable) -> Cost | UserError:
    """Try a meta-batch of each phase of training and one of evaluation; or say why the run could not start."""
    try:
        run = Run(dataclasses.replace(config, dry_run=True, resume=False), stop)
    except UserError as error:
        return error
    try:
        phases = trial_phases(run.loop)
        began = time.monotonic()
        run.accuracies("val", run.loop.chunks.training)
    except TooLittleMemoryError as error:
        return UserError(str(error))
    return Cost(phases, (time.monotonic() - began) / run.loop.chunks.training)


def seconds_left(planned: Planned, cost: Cost) -> float:
    """Training, validations and meta-test that a run has before it."""
    config, done = planned.config, planned.iteration
    validations = -(-config.iterations // config.val_every) - done // config.val_every
    validations += 1 if done == 0 else 0  # of the untrained start
    tasks = validations * config.val_tasks + config.eval_tasks
    return seconds_of(cost.phases, done) + cost.task * tasks

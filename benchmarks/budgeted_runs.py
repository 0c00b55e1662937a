"""Runs that all have one budget of processor time: how many iterations fit, and the processes that do them."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from metakm.config import RunConfig
from metakm.errors import UserError
from metakm.learning.outer_loop import OuterLoop
from metakm.run.build import build_learner, make_sampler
from metakm.run.command_line import command

FAILED = 1
"""Exit code of a run that failed by itself, such as one that diverged."""


def seconds_an_iteration(config: RunConfig, repetitions: int = 5) -> float:
    """Processor time of one step on one thread, the least of some, after one to warm up.

    Raises:
        DivergedError, TooLittleMemoryError: as a run would.
    """
    sampler = make_sampler(config, "train")
    learner = build_learner(config, sampler.dataset.image_shape, sampler.dataset.n_episode_classes)
    loop, found = OuterLoop(learner, sampler, config, torch.device("cpu")), []
    for _ in range(1 + repetitions):
        began = time.process_time()
        loop.step()
        found.append(time.process_time() - began)
    return min(found[1:])


def check_plan(plan: Sequence[Mapping[str, str]], core_seconds: float, flags: Sequence[str], path: Path) -> None:
    """Raises UserError if a line of the plan in `path` is for another budget or other flags."""
    wanted = shlex.join(flags)
    for row in plan:
        if float(row["core_seconds"]) != core_seconds:
            raise UserError(
                f"Expected a plan for --core-seconds {core_seconds:g}, got one for {row['core_seconds']} in {path}; "
                "use that, or another --out"
            )
        if row["flags"] != wanted:
            raise UserError(
                f"Expected a plan for the flags {wanted!r}, got one for {row['flags']!r} in {path}; use those, or "
                "another --out"
            )


def run_process(config: RunConfig) -> int:
    """Run it in a process of its own, which after Ctrl-C is given the time to save; return its exit code."""
    process = subprocess.Popen([sys.executable, *shlex.split(command(config))[1:]])
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise


def run_each(runs: Iterable[Callable[[], int]]) -> int:
    """Call one after the other; a run that failed by itself does not keep the next ones from running.

    Returns:
        0, the first other code, at which it stopped, or `FAILED` where a run failed.
    """
    code = 0
    for run in runs:
        own = run()
        if own not in (0, FAILED):
            return own
        code = code or own
    return code

"""Runs that all have one budget of CPU time: how many iterations fit, and the processes that do them."""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import describe

from metakm.cli.progress import log_line
from metakm.config import RunConfig
from metakm.data import EpisodeSampler
from metakm.errors import UserError
from metakm.io.csv_file import csv_text, read_csv
from metakm.io.files import write_text
from metakm.learning.divergence import DivergedError
from metakm.learning.learner import Learner
from metakm.learning.malloc import keep_freed_memory
from metakm.learning.memory import TooLittleMemoryError
from metakm.learning.outer_loop import OuterLoop
from metakm.run.build import build_learner, make_sampler
from metakm.run.command_line import command
from metakm.run.folder import RunFolder
from metakm.run.provenance import now

FAILED = 1
"""Exit code of a run that failed by itself, such as one that diverged."""
Key = tuple[str, ...]
Row = Mapping[str, str]


@dataclass(frozen=True)
class BudgetedRuns:
    """Runs of one budget. `plan.csv` in `out` has a line for each: the iterations that fit, or why it cannot be run.

    Args:
        keys: columns of the plan that tell the runs apart.
        settings: of a run, from its key and its iterations.
        core_seconds: CPU time of each run's meta-training, without validations and meta-test.
        flags: what was given to all runs, which must be the same whenever the plan is used.

    Raises:
        UserError: the plan is for another budget or other flags.
    """

    keys: Key
    settings: Callable[[Key, int], RunConfig]
    core_seconds: float
    flags: Sequence[str]
    out: Path

    def __post_init__(self) -> None:
        for line in self.plan():
            if float(line["core_seconds"]) != self.core_seconds:
                self._refuse_plan(f"--core-seconds {self.core_seconds:g}", line["core_seconds"])
            if line["flags"] != shlex.join(self.flags):
                self._refuse_plan(f"the flags {shlex.join(self.flags)!r}", repr(line["flags"]))

    def _refuse_plan(self, expected: str, got: str) -> None:
        raise UserError(
            f"Expected a plan for {expected}, got one for {got} in {self.out / 'plan.csv'}; use that, or another --out"
        )

    def plan(self) -> list[Row]:
        """Its lines, in the order in which they were measured."""
        path = self.out / "plan.csv"
        return list(read_csv(path)) if path.is_file() else []

    def key(self, line: Row) -> Key:
        """That of a line of the plan."""
        return tuple(line[name] for name in self.keys)

    def run_all(self, keys: Sequence[Key], sound: Key) -> int:
        """Measure what has no line yet, then run or go on, one after the other; return the exit code of `run_each`.

        All is measured at first, on one thread, so that the conditions are alike.

        Args:
            sound: a key that has to work. If it does not, the reason is the user's flags, data or weights.

        Raises:
            UserError: it does not.
        """
        keep_freed_memory()  # as a run has it
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"
        _build(self.settings(sound, 10))
        for key in keys:
            if key not in map(self.key, self.plan()):
                self._measure(key)
        lines = {self.key(line): line for line in self.plan()}
        return run_each(partial(self._run, key, lines[key]) for key in keys)

    def _run(self, key: Key, line: Row) -> int:
        if line["refused"]:
            log_line(f"{', '.join(key)}: {line['refused']}")
            return 0
        return run_process(self.settings(key, int(line["iterations"])))

    def _measure(self, key: Key) -> None:
        """Add its line to the plan."""
        seconds, iterations, refused = "", "", ""
        try:
            measured = seconds_an_iteration(self.settings(key, 10))
        except (UserError, DivergedError, TooLittleMemoryError) as error:
            refused = str(error)
        else:
            seconds, iterations = f"{measured:.5f}", str(max(1, int(self.core_seconds / measured)))
        line = dict(zip(self.keys, key, strict=True)) | {
            "flags": shlex.join(self.flags),
            "core_seconds": str(self.core_seconds),
            "core_seconds_an_iteration": seconds,
            "iterations": iterations,
            "refused": refused,
            "measured_at": now(),
            "measured_by": describe(),
        }
        self.out.mkdir(parents=True, exist_ok=True)
        write_text(self.out / "plan.csv", csv_text([*self.plan(), line], tuple(line)))

    def row(self, line: Row) -> dict[str, Any] | None:
        """The result of a planned run, as far as it is; None before it began, or if it was refused."""
        return None if line["refused"] else RunFolder(self._settings(line).folder).read_row()

    def command(self, line: Row, out: Path) -> str:
        """A shell command that repeats a planned run on one thread, in another folder."""
        settings = dataclasses.replace(self._settings(line), resume=False, out=out)
        return f"OMP_NUM_THREADS=1 {command(settings)}"

    def folder(self, line: Row) -> Path:
        """Where a planned run is."""
        return self._settings(line).folder

    def _settings(self, line: Row) -> RunConfig:
        return self.settings(self.key(line), int(line["iterations"]))


def seconds_an_iteration(config: RunConfig) -> float:
    """CPU time of one step on one thread, the least of five, after one to warm up.

    Raises:
        DivergedError, TooLittleMemoryError: as a run would.
    """
    learner, sampler = _build(config)
    loop, found = OuterLoop(learner, sampler, config, torch.device("cpu")), []
    for _ in range(6):
        began = time.process_time()
        loop.step()
        found.append(time.process_time() - began)
    return min(found[1:])


def _build(config: RunConfig) -> tuple[Learner, EpisodeSampler]:
    """Raises UserError for flags that do not fit, and for data or weights that cannot be loaded."""
    sampler = make_sampler(config, "train")
    return build_learner(config, sampler.dataset.image_shape, sampler.dataset.n_episode_classes), sampler


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

"""The progress of a sweep and its estimated end, from the files of its runs, so that any terminal can ask."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

from metakm.cli.progress import duration
from metakm.config import RunConfig
from metakm.errors import UserError
from metakm.io.csv_file import read_csv
from metakm.run.checkpoint import load_checkpoint
from metakm.run.folder import RunFolder
from metakm.sweep.plan import Planned


class Pace(NamedTuple):
    """Iterations of meta-training that a run has done, and the seconds they took, validations included."""

    iterations: int
    seconds: float


def pace(config: RunConfig) -> Pace | None:
    """The pace of a run, from its row if it is done, else from its checkpoint; None before its first validation."""
    folder = RunFolder(config.folder)
    row = folder.read_finished_row()
    try:
        if row is not None:
            done = read_csv(folder.path / "curve.csv")[-1]["iteration"] if row["stopped"] else config.iterations
            return Pace(int(done), float(row["train_seconds"]))
        state = load_checkpoint(folder.checkpoint, config)
        return Pace(int(state["loop"]["iteration"]), float(state["train_seconds"]))
    except (UserError, LookupError, TypeError, ValueError):
        return None


def status_text(plan: Sequence[Planned], jobs: int | None = None) -> str:
    """A line for each unfinished run, and one for all: how many are done, the time left, and when that ends.

    The time is estimated from the run itself, or from other seeds. It does not include meta-tests, nor blocked runs.

    Args:
        jobs: how many run at a time; None for as many as are running now.
    """
    jobs = jobs or max(1, sum(planned.state == "in use" for planned in plan))
    paces = {p.config: pace(p.config) for p in plan if p.state != "blocked"}  # a blocked folder holds another run
    done = sum(planned.state == "done" for planned in plan)
    lines, left, untimed = [], 0.0, 0
    for planned in (p for p in plan if p.state != "done"):
        text = planned.note
        if planned.state != "blocked":
            own = paces.get(planned.config) or Pace(0, 0.0)
            each = _seconds_per_iteration(planned.config, paces.items())
            remaining = None if each is None else each * (planned.config.iterations - own.iterations)
            left, untimed = left + (remaining or 0.0), untimed + (remaining is None)
            word = "not timed yet" if remaining is None else f"{duration(remaining)} left"
            text = f"iteration {own.iterations} of {planned.config.iterations}, {word}  {text}"
        lines.append(f"{planned.state:<10} {planned.config.run_id}  {text}".rstrip())
    finished = all(planned.state in ("done", "blocked") for planned in plan)
    lines.append(f"{done} of {len(plan)} done" + _format_eta(left / jobs, untimed, finished))
    return "\n".join(lines)


def _seconds_per_iteration(config: RunConfig, paces: Iterable[tuple[RunConfig, Pace | None]]) -> float | None:
    """Measured on the run itself, or else the mean over other seeds; None if none has started."""
    timed = {c.seed: p.seconds / p.iterations for c, p in paces if p and p.iterations and _same_but_seed(c, config)}
    return timed.get(config.seed, fmean(timed.values()) if timed else None)


def _same_but_seed(one: RunConfig, other: RunConfig) -> bool:
    return dataclasses.replace(one, seed=0) == dataclasses.replace(other, seed=0)


def _format_eta(seconds: float, untimed: int, finished: bool) -> str:
    if finished:
        return ""
    if not seconds:
        return "; the time left is not known yet"
    end = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + seconds))
    more = f", plus {untimed} not timed yet" if untimed else ""
    return f"; {duration(seconds)} left (until {end}){more}"

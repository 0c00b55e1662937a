"""The course of a sweep: start what is missing, take in what has ended, go on past what failed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Literal, NamedTuple

from metakm.interrupt import StopRequest
from metakm.progress import say
from metakm.scheduling.job import Outcome
from metakm.scheduling.plan import Planned, State, inspect
from metakm.scheduling.pool import Job, NotTakenError, Pool

POLL_SECONDS = 0.5


class Active(NamedTuple):
    """A run that was started."""

    planned: Planned
    job: Job


class Sweeper:
    """Works off a plan; `outcomes` has how each run ended that was missing, by its run_id."""

    def __init__(self, plan: Iterable[Planned], pool: Pool, stop: StopRequest) -> None:
        self.pool, self.stop = pool, stop
        self.waiting = deque(planned for planned in plan if planned.missing)
        self.total = len(self.waiting)
        self.active: dict[int, Active] = {}  # by slot
        self.outcomes: dict[str, Outcome] = {}
        self.room = pool.size  # runs at a time; fewer from when on a cluster has taken no more
        self.stopping = False

    def run(self) -> None:
        """Until all runs have ended, or after a stop those that were started.

        Raises:
            KeyboardInterrupt: a second stop; what was started has been told to end at once.
        """
        try:
            while self.active or (self.waiting and not self.stopping):
                if self.stop.requested and not self.stopping:
                    self._stop()
                self._start()
                self._collect()
                if self.active:
                    time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            self._stop()
            raise

    def _stop(self) -> None:
        self.stopping = True
        self.pool.stop(active.job for active in self.active.values())

    def _start(self) -> None:
        while self.waiting and not self.stopping and len(self.active) < self.room:
            planned = inspect(self.waiting.popleft().config)  # another sweep may have been faster
            run_id = planned.config.run_id
            if not planned.missing:
                self._end(planned, Outcome(_as_outcome(planned.state), planned.note))
                continue
            slot = next(i for i in range(self.pool.size) if i not in self.active)
            try:
                self.active[slot] = Active(planned, self.pool.submit(planned.config, slot))
            except NotTakenError as error:
                if self.active:  # it may be a limit on jobs: try again when one of them has ended
                    say(f"{run_id}: waits, not taken: {error}")
                    self.waiting.appendleft(planned)
                    self.room = len(self.active)
                    return
                self._end(planned, Outcome("failed", str(error)))
                continue
            say(f"{run_id}: started, log {self.active[slot].job.paths.stderr}")

    def _collect(self) -> None:
        for slot, (planned, job) in list(self.active.items()):
            if self.pool.done(job):
                del self.active[slot]
                self._end(planned, self.pool.outcome(job))

    def _end(self, planned: Planned, outcome: Outcome) -> None:
        if outcome.kind == "done":
            outcome = outcome._replace(note=inspect(planned.config).note)
        if outcome.kind == "interrupted" and self.pool.in_process:
            self._stop()
        self.outcomes[planned.config.run_id] = outcome
        say(f"[{len(self.outcomes)}/{self.total}] {planned.config.run_id}: {outcome.kind}; {outcome.note}")


def _as_outcome(state: State) -> Literal["done", "in use", "failed"]:
    return state if state == "done" or state == "in use" else "failed"

"""Run a sweep: start missing runs, record how each ends, and continue after failures."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, NamedTuple

from metakm.cli.progress import log_line
from metakm.cli.signals import StopRequest
from metakm.sweep.job import JobOutcome
from metakm.sweep.plan import Planned, RunState, inspect
from metakm.sweep.pool import Pool, SubmissionError

if TYPE_CHECKING:
    from metakm.sweep.pool import Job

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 600  # with a cluster's controller that does not answer


class Active(NamedTuple):
    """A run that was started."""

    planned: Planned
    job: Job


class Sweeper:
    """Runs what a plan is missing; `outcomes` says how each run ended, by its run_id."""

    def __init__(self, plan: Iterable[Planned], pool: Pool, stop: StopRequest) -> None:
        self.pool, self.stop = pool, stop
        self.waiting = deque(planned for planned in plan if planned.missing)
        self.total = len(self.waiting)
        self.active: dict[int, Active] = {}  # by slot
        self.outcomes: dict[str, JobOutcome] = {}
        self.capacity = pool.size  # runs at a time; lowered when the cluster takes no more
        self.silent_since: float | None = None  # when the cluster's controller stopped answering
        self.retry_at = 0.0  # when to submit again
        self.stopping = False

    def run(self) -> None:
        """Run until all runs have ended or, after a stop, those that were started.

        Raises:
            KeyboardInterrupt: a second stop; the started runs were told to end at once.
        """
        try:
            while self.active or (self.waiting and not self.stopping):
                if self.stop.requested and not self.stopping:
                    self._stop()
                self._start()
                self._collect()
                if self.active or self.silent_since is not None:
                    time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            self._stop()
            raise

    def _stop(self) -> None:
        self.stopping = True
        self.pool.stop(active.job for active in self.active.values())

    def _start(self) -> None:
        while (
            self.waiting
            and not self.stopping
            and len(self.active) < self.capacity
            and time.monotonic() >= self.retry_at
        ):
            planned = inspect(self.waiting.popleft().config)  # another sweep may have run it meanwhile
            if not planned.missing:
                self._end(planned, JobOutcome(_as_outcome(planned.state), planned.note))
                continue
            slot = next(i for i in range(self.pool.size) if i not in self.active)
            try:
                job = self.pool.submit(planned.config, slot)
            except SubmissionError as error:
                self._handle_refusal(planned, error)
                continue
            self.silent_since = None
            self.active[slot] = Active(planned, job)
            log_line(f"{planned.config.run_id}: started, log {job.paths.stderr}")

    def _handle_refusal(self, planned: Planned, error: SubmissionError) -> None:
        """Put a run back to try again later, or give it up if waiting cannot help."""
        now = time.monotonic()
        new = self.silent_since is None  # otherwise it was reported before
        if error.silent:
            self.silent_since = now if self.silent_since is None else self.silent_since
            self.retry_at = now + self.pool.options.poll_seconds
            waits = now - self.silent_since < PATIENCE_SECONDS
        elif waits := bool(self.active):  # it may be a limit on jobs: try again when one of ours has ended
            self.capacity = len(self.active)
        if not waits:
            self._end(planned, JobOutcome("failed", str(error)))
            return
        self.waiting.appendleft(planned)
        if new:
            log_line(f"{planned.config.run_id}: not accepted yet, will try again: {error}")

    def _collect(self) -> None:
        for slot, (planned, job) in list(self.active.items()):
            if self.pool.done(job):
                del self.active[slot]
                self._end(planned, self.pool.outcome(job))

    def _end(self, planned: Planned, outcome: JobOutcome) -> None:
        run_id = planned.config.run_id
        if outcome.kind == "done":
            outcome = outcome._replace(note=inspect(planned.config).note)
        if outcome.kind == "interrupted" and self.pool.in_process:
            self._stop()
        if outcome.kind == "preempted" and not self.stopping:
            self.waiting.append(planned)
            log_line(f"{run_id}: preempted {outcome.note}; submitted again")
            return
        self.outcomes[run_id] = outcome
        log_line(f"[{len(self.outcomes)}/{self.total}] {run_id}: {outcome.kind}; {outcome.note}")


def _as_outcome(state: RunState) -> Literal["done", "in use", "failed"]:
    return state if state == "done" or state == "in use" else "failed"

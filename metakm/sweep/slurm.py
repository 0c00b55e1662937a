"""Jobs on SLURM: their state, why they ended, and how to cancel them.

submitit uses `sacct`, which many clusters lack and which lags behind. This module asks the controller instead: `squeue`
at a fixed interval, for all jobs at once, and `scontrol` when a job has ended. `sacct` is used only for a job that the
controller has already forgotten (`MinJobAge`, 5 minutes by default). Tested with SLURM 22.05.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from metakm.cli.progress import log_line
from metakm.errors import one_line
from metakm.sweep.job import JobOutcome, result_of

if TYPE_CHECKING:
    import submitit

_TIMEOUT_SECONDS = 60  # of a command; SLURM's own limit is MessageTimeout, 10 s by default
_GONE = "GONE"  # not SLURM's: a job that the controller does not list
_OUT_OF_MEMORY = re.compile(r"exceeded (job )?memory limit|oom[-_]?kill|task \d+: out of memory", re.IGNORECASE)
_LOG_END = 8192  # bytes at the end of a job's log to search for SLURM's message


_BY_NAME = {
    "BOOT_FAIL": JobOutcome("interrupted", "its node did not boot"),
    "CANCELLED": JobOutcome("interrupted", "cancelled"),
    "COMPLETED": JobOutcome("failed", "ended without a result"),
    "DEADLINE": JobOutcome("interrupted", "reached its deadline"),
    "FAILED": JobOutcome("failed"),  # the reason is looked up
    "NODE_FAIL": JobOutcome("interrupted", "its node failed"),
    "OUT_OF_MEMORY": JobOutcome("failed", "out of memory; ask for more with --slurm mem=..."),
    "PREEMPTED": JobOutcome("preempted", "and not requeued by SLURM"),
    "REVOKED": JobOutcome("interrupted", "revoked"),
    "TIMEOUT": JobOutcome("interrupted", "reached its time limit, and was not requeued"),
    _GONE: JobOutcome("failed", "SLURM no longer knows the job"),
}


class JobState(NamedTuple):
    """What `squeue` says of a job."""

    name: str  # such as PENDING
    reason: str = ""  # why it is pending, or why it failed

    @property
    def ended(self) -> bool:
        """Whether the job has stopped for good, unless SLURM requeues it."""
        return self.name in _BY_NAME


class SlurmQueue:
    """The jobs of a sweep, as SLURM sees them.

    Args:
        interval: seconds between two queries to the controller.
    """

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self._silent = False  # whether the controller failed to answer the last query
        self._names: dict[str, str] = {}  # of the jobs watched, by their id
        self._states: dict[str, JobState] = {}
        self._settled: set[str] = set()
        self._to_cancel: list[str] = []
        self._asked = time.monotonic()

    def track(self, job_id: str, name: str) -> None:
        """Track a job from now on, and call it `name` in messages."""
        self._names[job_id], self._states[job_id] = name, JobState("PENDING")

    def has_ended(self, job: submitit.Job[JobOutcome]) -> bool:
        """Whether a job has ended for good.

        A run that is done has. Any other result may be temporary: SLURM may have preempted and requeued the job. So the
        end must be seen twice, also because a network file system may show the result late.
        """
        if _is_final(result_of(job)):
            return True
        if time.monotonic() - self._asked >= self.interval:
            self.poll()
        return job.job_id in self._settled

    def outcome(self, job: submitit.Job[JobOutcome]) -> JobOutcome:
        """How a job ended; it is no longer tracked."""
        state = self._states.pop(job.job_id)
        self._names.pop(job.job_id)
        self._settled.discard(job.job_id)
        result = result_of(job)
        if result is not None and _is_final(result):
            return result
        return outcome_of(state.name, _details(job.job_id), job.paths.stderr, result)

    def cancel(self, job_ids: Iterable[str]) -> None:
        """Cancel jobs as soon as SLURM answers: SIGTERM, then SIGKILL after `KillWait`, 30 s by default."""
        self._to_cancel = list(job_ids)
        self.poll()

    def poll(self) -> str:
        """Ask the controller for the state of all jobs. Returns its error message, or an empty text."""
        answer = run_slurm("squeue", f"--user={os.getuid()}", "--states=all", "--noheader", "--format=%A|%T|%r")
        self._asked = time.monotonic()
        if answer.returncode != 0:
            error = one_line(answer.stderr) or "no answer"
            if self._states and not self._silent:
                log_line(f"SLURM does not answer; will try again: {error}")
            self._silent = True
            return error
        self._silent = False
        if self._to_cancel:
            run_slurm("scancel", *self._to_cancel)
            self._to_cancel = []
        rows = (line.split("|", 2) for line in answer.stdout.splitlines())
        listed = {row[0]: JobState(*row[1:]) for row in rows}
        for job_id, before in self._states.items():
            now = listed.get(job_id) or (before if before.ended else JobState(_GONE))
            if now.ended and now == before:
                self._settled.add(job_id)
            _announce(self._names[job_id], before, now)
            self._states[job_id] = now
        return ""


def outcome_of(state: str, details: dict[str, str], log: Path, result: JobOutcome | None) -> JobOutcome:
    """How a job ended, from SLURM's name for its state.

    Args:
        details: fields of `scontrol show job`.
        result: what the run left behind, if anything: "interrupted" or "failed".
    """
    stopped = result is not None and result.kind == "interrupted"
    if state == _GONE and details.get("JobState") in _BY_NAME:  # accounting that lags behind may say RUNNING
        state = details["JobState"]
    if stopped and details.get("PreemptTime", "None") != "None":
        state = "PREEMPTED"  # a job that ends within its grace time is COMPLETED to SLURM, and not requeued
    if state == "FAILED" and (stopped or result is None or _exit_signal(details)):
        return (
            _BY_NAME["OUT_OF_MEMORY"] if _ran_out_of_memory(details, log) else JobOutcome("failed", _exit_text(details))
        )
    if result is not None and state in ("FAILED", "COMPLETED", _GONE):
        return result if result.note else result._replace(note="by a signal")
    return _BY_NAME[state]


def run_slurm(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a SLURM command quietly, shielded from the terminal's Ctrl-C."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, start_new_session=True, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def _is_final(result: JobOutcome | None) -> bool:
    """Whether a run needs no further job, whatever SLURM does with this one."""
    return result is not None and result.kind in ("done", "in use")


def _details(job_id: str) -> dict[str, str]:
    """Fields of `scontrol show job`; if the controller has forgotten the job, those of the accounting database."""
    fields = dict(re.findall(r"(\w+)=(\S*)", run_slurm("scontrol", "show", "job", "--oneliner", job_id).stdout))
    if "JobState" in fields:
        return fields
    accounting = run_slurm("sacct", "-nPX", f"--jobs={job_id}", "--format=State,ExitCode").stdout
    found = re.match(r"(\w+)[^|]*\|([\d:]*)", accounting)  # such as "CANCELLED by 1000|0:15"
    return {"JobState": found[1], "ExitCode": found[2]} if found else {}


def _announce(name: str, before: JobState, now: JobState) -> None:
    """Report that a job is pending again, or is held until somebody releases it."""
    if now.name == "PENDING" and before.name != "PENDING":
        log_line(f"{name}: requeued by SLURM ({now.reason})")
    elif "held" in now.reason.lower() and now.reason != before.reason:
        log_line(f"{name}: held by SLURM ({now.reason})")


def _exit_signal(details: dict[str, str]) -> int:
    """The signal that ended a job's process, or 0. `srun` and shells add 128 to it."""
    code, _, number = details.get("ExitCode", "0:0").partition(":")
    return int(number or 0) or max(0, int(code or 0) - 128)


def _exit_text(details: dict[str, str]) -> str:
    number = _exit_signal(details)
    if number == signal.SIGKILL:
        return "its process was killed, as when memory runs out"
    if number in set(signal.Signals):
        return f"its process was ended by {signal.Signals(number).name}"
    if details.get("Reason", "None") not in ("None", "NonZeroExitCode"):
        return f"SLURM's reason is {details['Reason']}"
    return f"exit code {details.get('ExitCode', '?').partition(':')[0]}"


def _ran_out_of_memory(details: dict[str, str], log: Path) -> bool:
    """Whether SLURM says so in the job's log: without cgroups the state is FAILED."""
    if _exit_signal(details) != signal.SIGKILL:
        return False
    try:
        return _OUT_OF_MEMORY.search(log.read_bytes()[-_LOG_END:].decode(errors="replace")) is not None
    except OSError:
        return False

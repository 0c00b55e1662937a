"""Where the jobs of a sweep run: submitit's executors, with cores, GPUs and signals divided among the jobs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from metakm.config import RunConfig
from metakm.device import cores
from metakm.errors import UserError, missing_extra, one_line
from metakm.learning.memory import RUNS_HERE
from metakm.sweep.job import JobOutcome, RunJob, result_of, set_environment
from metakm.sweep.options import SweepOptions
from metakm.sweep.slurm import SlurmQueue

if TYPE_CHECKING:
    import submitit

    Job = submitit.Job[JobOutcome]

_MINUTES = 240  # time limit of a slurm job by default
_NO_LIMIT_MINUTES = 10 * 365 * 24 * 60  # because submitit ends local jobs after 2 minutes by default
_REQUEUES = 100  # of a slurm job that reached its time limit; it resumes each time


class SubmissionError(RuntimeError):
    """A cluster did not accept a job: an unknown partition, a limit on jobs, a controller that does not answer.

    Args:
        silent: the controller does not answer at all, for example while it restarts.
    """

    def __init__(self, message: str, *, silent: bool = False) -> None:
        super().__init__(message)
        self.silent = silent


class Pool:
    """Runs jobs, up to `size` at a time.

    Raises:
        UserError: more threads than cores, or no submitit.
    """

    def __init__(self, options: SweepOptions, folder: Path) -> None:
        if importlib.util.find_spec("submitit") is None:
            raise missing_extra("submitit", "cluster", "a sweep")
        self.options, self.folder, self.stop_file = options, folder, folder / "stop"
        self.gpus = torch.cuda.device_count() if options.executor == "local" else 0
        self.size = options.jobs or _default_jobs(options, self.gpus)
        self.threads = _threads(options, self.size)
        self.queue = SlurmQueue(options.poll_seconds) if options.executor == "slurm" else None

    @functools.cached_property
    def executor(self) -> submitit.AutoExecutor:
        """The executor of submitit; it creates its folder for logs.

        Raises:
            UserError: no cluster here.
        """
        if self.queue is not None and (error := self.queue.poll()):
            raise UserError(f"Expected a cluster for --executor slurm, got: {error}; start it where SLURM answers")
        return _executor(self.options, self.folder)

    @property
    def in_process(self) -> bool:
        """Whether jobs run inside this process, once their result is asked for."""
        return self.options.executor == "debug"

    def submit(self, config: RunConfig, slot: int) -> Job:
        """Start a run, or queue it.

        Args:
            slot: which of the `size` slots it takes; on several GPUs each slot has its own GPU.

        Raises:
            UserError: no cluster here.
            SubmissionError: the cluster does not accept it.
        """
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        environment = self.environment(config.device)
        if self._uses_several_gpus(config.device):
            config = dataclasses.replace(config, device=f"cuda:{slot % self.gpus}")
        run = RunJob(config, self.stop_file, self.queue is not None, os.environ.get("CUDA_VISIBLE_DEVICES"))
        try:
            with environment, _block_sigint():
                job = self.executor.submit(run)
        except (FailedJobError, FailedSubmissionError) as error:
            silent = self.queue is not None and self.queue.poll() != ""
            message = one_line(error) or "the cluster gave no reason"
            raise SubmissionError(message, silent=silent) from error
        if self.queue is not None:
            self.queue.track(job.job_id, config.run_id)
        return job

    def done(self, job: Job) -> bool:
        """Whether a job has ended; with `debug`, this call runs it."""
        if self.queue is not None:
            return self.queue.has_ended(job)
        with self._threads_here():
            return job.done()

    def outcome(self, job: Job) -> JobOutcome:
        """How a job ended; call it once the job is done."""
        if self.queue is not None:
            return self.queue.outcome(job)
        if self.in_process:
            return job.result()
        stopped = self.stop_file.exists()
        nothing = (
            JobOutcome("interrupted", "before it began") if stopped else JobOutcome("failed", "its process was killed")
        )
        return result_of(job) or nothing

    def stop(self, jobs: Iterable[Job]) -> None:
        """Ask jobs to save their state and end; a second call ends them at once."""
        with contextlib.suppress(FileNotFoundError):  # of the folder, which the first job makes
            self.stop_file.touch()
        ids = [job.job_id for job in jobs]
        if self.queue is not None:
            self.queue.cancel(ids)
        elif not self.in_process:
            for process in map(int, ids):  # submitit's controllers, which forward it
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGTERM)

    @contextlib.contextmanager
    def _threads_here(self) -> Iterator[None]:
        """Set the number of threads for a job in this process."""
        if not self.in_process:
            yield
            return
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def _uses_several_gpus(self, device: str) -> bool:
        """Whether runs on `--device` are spread over several GPUs."""
        return self.gpus > 1 and device in ("auto", "cuda")

    @contextlib.contextmanager
    def environment(self, device: str) -> Iterator[None]:
        """Set what a local job on `--device` inherits: its number of threads, and how many runs share the device."""
        if self.options.executor != "local":
            yield
            return
        sharing = -(-self.size // self.gpus) if self._uses_several_gpus(device) else self.size
        own = {"OMP_NUM_THREADS": str(self.threads), RUNS_HERE: str(sharing)}
        before = {name: os.environ.get(name) for name in own}
        os.environ.update(own)
        try:
            yield
        finally:
            for name, value in before.items():
                set_environment(name, value)


@contextlib.contextmanager
def _block_sigint() -> Iterator[None]:
    """Start child processes with SIGINT blocked, so that Ctrl-C reaches the sweep alone.

    A terminal sends Ctrl-C to all processes: submitit's local controllers would kill their runs within a second, and an
    `sbatch` that is killed may leave a job that nobody knows about.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _default_jobs(options: SweepOptions, gpus: int) -> int:
    return sys.maxsize if options.executor == "slurm" else max(1, gpus)


def _threads(options: SweepOptions, jobs: int) -> int:
    """Threads per job; 0 if the cluster decides."""
    if options.executor == "slurm":
        return options.cpus_per_task or 0
    inherited = os.environ.get("OMP_NUM_THREADS", "")
    threads = options.cpus_per_task or (int(inherited) if inherited.isdecimal() else 0) or max(1, cores() // jobs)
    if jobs * threads > cores():
        raise UserError(
            f"Expected jobs x threads to be at most {cores()}, the cores of this machine (more would slow each other "
            f"down), got {jobs} x {threads}; lower --jobs or --cpus-per-task"
        )
    return threads


def _executor(options: SweepOptions, folder: Path) -> submitit.AutoExecutor:
    import submitit

    requeues = {"slurm_max_num_timeout": _REQUEUES} if options.executor == "slurm" else {}
    try:
        executor = submitit.AutoExecutor(folder, cluster=options.executor, **requeues)
    except RuntimeError as error:
        raise UserError(f"Expected a cluster for --executor {options.executor}, got: {error}") from error
    executor.update_parameters(name="metakm", timeout_min=options.time or _MINUTES)
    if options.executor == "local":
        executor.update_parameters(timeout_min=_NO_LIMIT_MINUTES)
    if options.executor == "slurm":
        executor.update_parameters(**_slurm_parameters(options))
    return executor


def _slurm_parameters(options: SweepOptions) -> dict[str, object]:
    """The requested resources under submitit's names, and what a job does before it starts Python."""
    threads = str(options.cpus_per_task or "$SLURM_CPUS_ON_NODE")  # the job's, not the whole node's
    parameters = {
        "slurm_partition": options.partition,
        "cpus_per_task": options.cpus_per_task,
        "gpus_per_node": options.gpus_per_node,
        "slurm_additional_parameters": dict(option.split("=", 1) for option in options.slurm),
        # since 22.05, srun may bind its task to one core by default
        "slurm_setup": [f"export OMP_NUM_THREADS={threads} SRUN_CPUS_PER_TASK={threads}"],
    }
    return {name: value for name, value in parameters.items() if value}

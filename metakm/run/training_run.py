"""The stages of a run, meta-learned or supervised: claim its folder, train, validate, test, write its row."""

from __future__ import annotations

import json
from typing import Any, Generic, TypeVar

import torch

from metakm.cli.exit_code import INTERRUPTED
from metakm.cli.progress import Progress, log_line
from metakm.cli.signals import Stoppable, stop_on_request
from metakm.config.execution import how_to_resume
from metakm.config.interfaces import AnyRunConfig
from metakm.distributed.processes import ALONE, Processes
from metakm.learning.divergence import DivergedError
from metakm.learning.memory import TooLittleMemoryError
from metakm.run import provenance
from metakm.run.callbacks import CallbackList, EndEvent
from metakm.run.checkpoint import data_state, load_checkpoint, restoring, save_checkpoint
from metakm.run.event_log import EventLog
from metakm.run.folder import RunFolder
from metakm.run.history import History, Trainable
from metakm.run.kind import Accuracies, RunKind
from metakm.run.row import Status

L = TypeVar("L", bound=Trainable)


class TrainingRun(RunKind, Generic[L]):
    """One run. A kind of run builds its `loop`, calls this constructor, and defines what `RunKind` asks for.

    Args:
        owner: what the parameters belong to, for messages.
        iterations: how long to train.
        val_every: iterations between validations; the last one always validates.
        split_hashes: of the data, by split.
        callbacks: what to call while it trains.

    Raises:
        UserError: on construction, for a folder that is in use or cannot be written, or a checkpoint of another run.
    """

    config: AnyRunConfig
    device: torch.device

    def __init__(
        self,
        config: AnyRunConfig,
        loop: L,
        *,
        owner: str,
        iterations: int,
        val_every: int,
        split_hashes: dict[str, str],
        folder: RunFolder,
        stop: Stoppable,
        processes: Processes = ALONE,
        callbacks: CallbackList | None = None,
    ) -> None:
        self.config, self.loop, self.folder, self.stop, self.processes = config, loop, folder, stop, processes
        self.owner, self.iterations, self.val_every, self.split_hashes = owner, iterations, val_every, split_hashes
        self.history = History(provenance.origin(self.device, processes.size))
        self.log = EventLog(config.execution, config.run_id, self.stage, files=processes.first)
        self.callbacks = callbacks or CallbackList((), torch.nn.Module())
        self.failure: Exception | None = None
        self.finished = self._open_folder() if processes.first and not config.execution.dry_run else None

    def execute(self) -> int:
        """Train, validate, test, write, let others into the folder; return the exit code of the command."""
        self.processes.on_peer_lost(self._mark_interrupted)
        try:
            return self._execute()
        finally:
            self.folder.release()

    def _mark_interrupted(self) -> None:
        """Called from another thread when a process is lost. The first process knows more than the row on disk."""
        row = self.folder.mark_interrupted(self.progress_columns() if self.processes.first else {})
        if row is not None:
            self.log.log_result(row)

    def _execute(self) -> int:
        found = (self.finished, self._checkpoint() if self.history.curve else None)
        self.finished, state = self.processes.broadcast(found)  # process 0 alone has looked into the folder
        if state is not None and not self.processes.first:
            self._restore(state)
        if self.finished is not None:
            self.log.log_result(self.finished)
            self._report(self.finished, "already done")
            return 0
        if self._stopping():
            raise KeyboardInterrupt
        try:
            self._announce()
            if self.config.execution.dry_run:
                return self._print_config()
            with self.log.writing(self.loop.iteration + 1 if self.history.curve else 0):
                return self._run()
        except (DivergedError, TooLittleMemoryError) as error:
            return self._fail(error)

    def _announce(self) -> None:
        if not self.config.execution.quiet:
            resumes = f"\n  resumes at iteration {self.loop.iteration}" if self.loop.iteration else ""
            log_line(f"{self.config.run_id}\n{self.announcement()}\n  {self.folder.path}{resumes}")
        if several := provenance.mixed(self.history.origin):
            log_line(f"{self.config.run_id} has been computed in parts, and its numbers may depend on it: {several}")

    def _print_config(self) -> int:
        if self.log.json:
            self.log.print_json("config", self.config.to_json())
        else:
            print(json.dumps(self.config.to_json(), indent=2))  # noqa: T201
        return 0

    def _run(self) -> int:
        if self.processes.first:
            self.folder.write_config_and_clear_results(self.config.to_json())
        self._write_row("running")
        self._train()
        stopped = self._stopping()
        tested = self._test() if self.test_total and not stopped else None
        if stopped or (self.test_total and tested is None):
            self._write_row("interrupted")
            again = how_to_resume(self.config.execution)
            log_line(f"Interrupted after {self.loop.iteration} iterations. To continue, {again}.")
            return INTERRUPTED
        if self.processes.first:
            self.write_results(tested)
            row = self._write_row("done", tested)
            numbers = row.get("accuracy"), row.get("ci95")
            self.callbacks.on_end(EndEvent(self.loop.iteration, self.stopped, *numbers, self.folder.path))
        return 0

    def _fail(self, error: Exception) -> int:
        """Keep the state just before a failed iteration, so that resuming reproduces the failure immediately."""
        self.failure, said = error, f"error: {error}"
        if not self.config.execution.dry_run:
            if self.history.curve and self.loop.iteration < self.iterations and not self._validation_due():
                self._save()  # else the checkpoint from before is the one to go on from, and not to skip a validation
            self._write_row("failed")
            said += self.how_to_reproduce()
        log_line(said)
        return 1

    def _stopping(self) -> bool:
        """Whether a stop was asked for, of any process: all stop after the same iteration."""
        return self.processes.any(self.stop.requested)

    def _open_folder(self) -> dict[str, Any] | None:
        """Claim the run folder; take up its checkpoint, or return its row, when resuming."""
        how = {name: getattr(self.config.execution, name) for name in ("resume", "overwrite")}
        row = self.folder.claim(self._load, run_id=self.config.run_id, iterations=self.iterations, **how)
        self.processes.mark_started()
        return row

    def _train(self) -> None:
        with self._progress(f"{self.stage}train", self.iterations, self.loop.iteration) as progress:
            if self.validates_first and not self.history.curve:
                self._validate(progress)
            while self.loop.iteration < self.iterations and not (self.callbacks.stopped or self._stopping()):
                result, elapsed = self.history.step(self.loop)
                self.log.log_iteration(self.loop.iteration, result.loss, result.accuracy, elapsed)
                progress.advance(1, result.loss, result.accuracy)
                self.callbacks.on_iteration(self.loop.iteration, result.loss, result.accuracy, elapsed)
                if self._validation_due():
                    self._validate(progress)
                elif self.history.save_due:
                    self._save()
            if self.stopped:
                progress.note(f"stopped {self.stopped}")
                if self.history.curve[-1].iteration != self.loop.iteration:
                    self._validate(progress)
        self._save()

    @property
    def stopped(self) -> str:
        """After how many iterations and why the training was stopped early; empty if it was not."""
        return self.callbacks.stopped if self.loop.iteration < self.iterations else ""

    def _validation_due(self) -> bool:
        """Whether this iteration ends in a validation that the curve does not have yet."""
        due = self.loop.iteration % self.val_every == 0 or self.loop.iteration == self.iterations
        curve = self.history.curve
        return due and not (curve and curve[-1].iteration == self.loop.iteration)

    def _validate(self, progress: Progress) -> None:
        """Add a point to the learning curve, and save."""
        point = self.history.validate(self.loop.iteration, self.validation_accuracy)
        self.log.log_validation(point)
        self.keep(point)
        self.callbacks.on_validation(self.history.curve)
        self._save()
        if point.validated:
            name = f"{self.stage}validation accuracy"
            progress.note(f"iteration {point.iteration}: {name} {point.val_accuracy:.4f}")

    def _test(self) -> Accuracies | None:
        """See `test_accuracies`; None when asked to stop."""
        with self._progress(f"{self.stage}test", self.test_total, unit=self.test_unit) as progress:
            try:
                return self.test_accuracies(stop_on_request(self.stop, progress.advance))
            except StopIteration:
                return None

    def _progress(self, description: str, total: int, start: int = 0, unit: str = "it") -> Progress:
        quiet = self.config.execution.quiet
        return Progress(description, total, start, unit, quiet=quiet, report=self.log.log_progress)

    def progress_columns(self) -> dict[str, Any]:
        """The columns of a row that tell of the training so far."""
        return self.history.columns(self.loop.iteration)

    def _checkpoint(self) -> dict[str, Any]:
        own = {**data_state(self.split_hashes), "loop": self.loop.state(), **self.own_state()}
        return {**self.history.state(), **self.callbacks.state(), **own}

    def _save(self) -> None:
        if self.processes.first:
            save_checkpoint(self.folder.checkpoint, self.config, self._checkpoint())
            self.folder.write_curve(self.history.curve)
        self.history.saved()

    def _restore(self, state: dict[str, Any]) -> None:
        self.history.load_state(state)
        self.callbacks.load_state(state)
        self.load_own_state(state)
        self.loop.load_state(state["loop"])

    def _load(self) -> None:
        state = load_checkpoint(self.folder.checkpoint, self.config)
        with restoring(self.folder.checkpoint, state, self.split_hashes, self.owner, self.remedy):
            self._restore(state)

    def _write_row(self, status: Status, tested: Accuracies | None = None) -> dict[str, Any]:
        """Write the row, and return its values; only the first process has one."""
        if not self.processes.first:
            return {}
        row = self.row(status, tested)
        self.folder.write_row(row)
        if status != "running":
            self.log.log_result(vars(row))
        if status == "done":
            self._report(vars(row), "done")
        return vars(row)

    def _report(self, row: dict[str, Any], word: str) -> None:
        if not self.log.json:
            print(self.summary(row, f"{word}: {self.folder.result}"), flush=True)  # noqa: T201

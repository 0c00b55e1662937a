"""One run: from its data to its row."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from metakm.cli.progress import Progress, duration, log_line
from metakm.cli.signals import StopRequest, stop_on_request
from metakm.config import RunConfig
from metakm.distributed.processes import ALONE, Processes
from metakm.distributed.torchrun import local_device
from metakm.learning.memory import TooLittleMemoryError
from metakm.learning.outer_loop import DivergedError, OuterLoop
from metakm.learning.statistics import interval_over_tasks
from metakm.registry import load_plugin
from metakm.run import provenance
from metakm.run.build import build_learner, make_sampler, resolve_device
from metakm.run.checkpoint import load_checkpoint, restoring, save_checkpoint
from metakm.run.columns import SPLIT_NAMES, measured_columns, summary
from metakm.run.command_line import command, how_to_resume
from metakm.run.event_log import EventLog
from metakm.run.folder import RunFolder
from metakm.run.history import History
from metakm.run.row import ResultRow, Status
from metakm.run.weights import weights_file
from metakm.strategies.registry import strategy_class


class Run:
    """One run of a config, from its data to its row.

    Raises:
        UserError: on construction, for anything that would make the run fail later: unknown names, missing data,
            episodes that cannot be drawn, a folder that is in use or cannot be written.
    """

    def __init__(self, config: RunConfig, stop: StopRequest, processes: Processes = ALONE) -> None:
        self.config, self.stop, self.processes = config, stop, processes
        for plugin in config.plugin:
            load_plugin(plugin)
        strategy_class(config.algo)
        self.device = resolve_device(local_device(config.device))
        self.samplers = {split: make_sampler(config, split) for split in ("train", "val", "test")}
        learner = build_learner(config, self.image_shape)
        self.loop = OuterLoop(learner, self.samplers["train"], config, self.device, processes)
        self._weights()  # to fail now, not after the training
        self.folder = RunFolder(config.folder)
        self.history, self.git_commit = History(), provenance.git_commit()
        self.best: dict[str, Any] = {"val_accuracy": -1.0}
        self.log = EventLog(config if processes.first else dataclasses.replace(config, log_dir=None))
        self.finished = self._open_folder() if processes.first and not config.dry_run else None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the dataset's images."""
        return self.samplers["train"].dataset.image_shape

    def execute(self) -> int:
        """Train, validate, evaluate, write, let others into the folder; return the exit code of `main`."""
        self.processes.when_lost(self._mark_interrupted)
        try:
            return self._execute()
        finally:
            self.folder.release()

    def _mark_interrupted(self) -> None:
        """Called from another thread when a process is lost. The first process knows more than the row on disk."""
        row = self.folder.mark_interrupted(self._trained() if self.processes.first else {})
        if row is not None:
            self.log.ended(row)

    def _execute(self) -> int:
        found = (self.finished, self._state() if self.history.curve else None)
        self.finished, state = self.processes.broadcast(found)  # process 0 alone has looked into the folder
        if state is not None and not self.processes.first:
            self._restore(state)
        if self.finished is not None:
            self.log.ended(self.finished)
            self._report(self.finished["accuracy"], self.finished["ci95"], "already done")
            return 0
        if self._stopping():
            raise KeyboardInterrupt
        try:
            self._announce()
            if self.config.dry_run:
                if self.config.json:
                    self.log.line("config", self.config.to_json())
                else:
                    print(json.dumps(self.config.to_json(), indent=2))  # noqa: T201
                return 0
            with self.log.recording(self.loop.iteration + 1 if self.history.curve else 0):
                return self._run()
        except (DivergedError, TooLittleMemoryError) as error:
            return self._fail(error)

    def _run(self) -> int:
        self._write_row("running")
        self._train()
        tested = None if self._stopping() else self._test()
        if tested is None:
            self._write_row("interrupted")
            log_line(f"Interrupted after {self.loop.iteration} iterations. To go on, {how_to_resume(self.config)}.")
            return 130
        if self.processes.first:
            self.folder.write_tasks(tested)
            self.folder.write_picture(self.history.curve, f"{self.config.algo}, {self.config.setting}")
            self.folder.write_weights(self._weights())
        self._write_row("done", tested)
        self._report(tested.mean(), interval_over_tasks(tested), "done")
        return 0

    def _fail(self, error: Exception) -> int:
        """Keep the state just before a failed iteration, so that the command printed meets it again at once."""
        said = f"error: {error}"
        if not self.config.dry_run:
            if self.history.curve and self.loop.iteration < self.config.iterations and not self._validation_due():
                self._save()  # else the checkpoint from before is the one to go on from, and not to skip a validation
            self._write_row("failed")
            again = dataclasses.replace(self.config, resume=True, overwrite=False)
            said += f". To reproduce it: {command(again)}"
        print(said, file=sys.stderr)  # noqa: T201
        return 1

    def _weights(self) -> bytes:
        """The file of the model as it is."""
        return weights_file(self.config, self.image_shape, self.loop.model_state())

    def _stopping(self) -> bool:
        """Whether a stop was asked for, of any process: all stop after the same iteration."""
        return self.processes.any(self.stop.requested)

    def _open_folder(self) -> dict[str, Any] | None:
        """Claim the run folder; take up its checkpoint, or return its row, when resuming."""
        config = self.config
        row = self.folder.begin(config.to_json(), self._load, resume=config.resume, overwrite=config.overwrite)
        self.processes.mark_begun()
        return row

    def _announce(self) -> None:
        if self.config.quiet:
            return
        adapted, total = self.loop.learner.strategy.parameter_counts()
        where = provenance.device_name(self.device, self.processes.size)
        log_line(
            f"{self.config.run_id}\n"
            f"  {self.config.algo} on {self.config.backbone}: adapts {adapted:,} of {total:,} parameters"
            f"{'' if adapted else '; the inner learning rate and steps have no effect'}\n"
            f"  {where}, {torch.get_num_threads()} threads, {self.loop.chunks.training} tasks at a time\n"
            f"  {self._estimate()}\n"
            f"  {self.folder.path}" + (f"\n  resumes at iteration {self.loop.iteration}" if self.loop.iteration else "")
        )

    def _estimate(self) -> str:
        """Time and memory of the meta-training that is left; validation and meta-test come on top."""
        if self.loop.iteration >= self.config.iterations:
            return "no meta-training left"
        seconds = self.loop.trial_seconds()
        left = seconds * (self.config.iterations - self.loop.iteration)
        gigabytes = self.loop.chunks.training * self.loop.chunks.task_bytes / 1e9
        return f"about {1000 * seconds:.0f} ms an iteration, {duration(left)} of meta-training, {gigabytes:.1f} GB"

    def _train(self) -> None:
        iterations = self.config.iterations
        if not self.history.curve:
            self._validate()
        with self._progress("meta-train", iterations, self.loop.iteration) as progress:
            while self.loop.iteration < iterations and not self._stopping():
                result, elapsed = self.history.step(self.loop)
                self.log.trained(self.loop.iteration, result.loss, result.accuracy, elapsed)
                progress.advance(1, result.loss, result.accuracy)
                if self._validation_due():
                    self._validate(progress)
                elif self.history.save_due:
                    self._save()
        self._save()

    def _validation_due(self) -> bool:
        """Whether this iteration ends in a validation that the curve does not have yet."""
        due = self.loop.iteration % self.config.val_every == 0 or self.loop.iteration == self.config.iterations
        curve = self.history.curve
        return due and not (curve and curve[-1].iteration == self.loop.iteration)

    def _validate(self, progress: Progress | None = None) -> None:
        tasks = self.config.val_tasks
        point = self.history.validate(self.loop.iteration, lambda: float(self.accuracies("val", tasks).mean()))
        self.log.validated(point)
        if point.val_accuracy > self.best["val_accuracy"] or self.config.select == "last":
            self.best = {"val_accuracy": point.val_accuracy, "model": self.loop.model_state()}
        self._save()
        if progress is not None:
            progress.note(f"iteration {point.iteration}: {SPLIT_NAMES['val']} accuracy {point.val_accuracy:.4f}")

    def _test(self) -> npt.NDArray[np.float64] | None:
        """Meta-test accuracies `[eval_tasks]` of the model that `--select` names; None when asked to stop."""
        self.loop.load_model_state(self.best["model"])
        with self._progress(SPLIT_NAMES["test"], self.config.eval_tasks, unit="task") as progress:
            try:
                return self.accuracies("test", self.config.eval_tasks, stop_on_request(self.stop, progress.advance))
            except StopIteration:
                return None

    def _progress(self, description: str, total: int, start: int = 0, unit: str = "it") -> Progress:
        return Progress(description, total, start, unit, quiet=self.config.quiet, report=self.log.progressed)

    def accuracies(self, split: str, tasks: int, progress: Any = lambda _: None) -> npt.NDArray[np.float64]:
        """Accuracies `[tasks]` on the first tasks of a split; see `OuterLoop.accuracies`."""
        return self.loop.accuracies(self.samplers[split], tasks, progress)

    def _save(self) -> None:
        if self.processes.first:
            save_checkpoint(self.folder.checkpoint, self.config, self._state())
            self.folder.write_curve(self.history.curve)
        self.history.saved()

    def _state(self) -> dict[str, Any]:
        data = {"image_shape": list(self.image_shape), "split_hash": self.samplers["train"].dataset.split_hash}
        return {**self.history.state(), **data, "best": self.best, "loop": self.loop.state()}

    def _restore(self, state: dict[str, Any]) -> None:
        self.history.load_state(state)
        self.best = {"val_accuracy": float(state["best"]["val_accuracy"]), "model": state["best"]["model"]}
        self.loop.load_model_state(self.best["model"])  # to fail now, not after the training
        self.loop.load_state(state["loop"])

    def _load(self) -> None:
        state = load_checkpoint(self.folder.checkpoint, self.config)
        now = self.samplers["train"].dataset.split_hash
        remedy = "restore the strategy if it was changed, or "
        with restoring(self.folder.checkpoint, state, now, self.config.algo, remedy):
            self._restore(state)

    def _write_row(self, status: Status, tested: npt.NDArray[np.float64] | None = None) -> None:
        if not self.processes.first:
            return
        row = ResultRow(
            **measured_columns(self.config, self.loop.evaluator, self.samplers["test"], tested),
            **self._trained(),
            status=status,
            git_commit=self.git_commit,
            started_at=self.history.started_at,
        )
        self.folder.write_row(row)
        if status != "running":
            self.log.ended(dataclasses.asdict(row))

    def _trained(self) -> dict[str, Any]:
        """The columns that tell of the training so far."""
        return {
            "val_accuracy": self.best["val_accuracy"] if self.history.curve else None,
            "train_seconds": round(self.history.train_seconds, 3),
            "ms_per_iteration": self.history.ms_per_iteration(self.loop.iteration),
        }

    def _report(self, accuracy: float, ci95: float, word: str) -> None:
        if not self.config.json:
            print(summary(self.config, accuracy, ci95, f"{word}: {self.folder.result}"))  # noqa: T201

"""One run: from its data to its row."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from metakm import provenance
from metakm.checkpoint import SAVE_SECONDS, load_checkpoint, save_checkpoint
from metakm.command_line import command
from metakm.config import RunConfig
from metakm.distributed import ALONE, Processes, local_device
from metakm.errors import UserError
from metakm.event_log import EventLog
from metakm.interrupt import StopRequest, ending
from metakm.measured import SPLIT_NAMES, measured_columns, summary
from metakm.memory import TooLittleMemoryError
from metakm.outer_loop import DivergedError, OuterLoop
from metakm.preparation import build_strategy, make_sampler, resolve_device
from metakm.progress import Progress, duration, say
from metakm.results import CurvePoint, ResultRow, RunFolder, Status, interval_over_tasks
from metakm.strategies import load_plugin
from metakm.strategies.registry import strategy_class
from metakm.weights import weights_file


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
        strategy = build_strategy(config, self.image_shape)
        self.loop = OuterLoop(strategy, self.samplers["train"], config, self.device, processes)
        self._weights()  # to fail now, not after the training
        self.folder = RunFolder(config.folder)
        self.curve: list[CurvePoint] = []
        self.since: list[tuple[float, float]] = []  # loss and accuracy of the iterations since the last validation
        self.best: dict[str, Any] = {"val_accuracy": -1.0}
        self.train_seconds = self.step_seconds = 0.0
        self.started_at, self.git_commit = provenance.now(), provenance.git_commit()
        self.log = EventLog(config if processes.first else dataclasses.replace(config, log_dir=None))
        self.finished = self._open_folder() if processes.first and not config.dry_run else None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the dataset's images."""
        return self.samplers["train"].dataset.image_shape

    def execute(self) -> int:
        """Train, validate, evaluate, write, let others into the folder; return the exit code of `main`."""
        try:
            return self._execute()
        finally:
            self.folder.release()

    def _execute(self) -> int:
        found = (self.finished, self._state() if self.curve else None)
        self.finished, state = self.processes.from_first(found)  # process 0 alone has looked into the folder
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
            with self.log.recording(self.loop.iteration + 1 if self.curve else 0):
                return self._run()
        except (DivergedError, TooLittleMemoryError) as error:
            return self._fail(error)

    def _run(self) -> int:
        self._write_row("running")
        self._train()
        tested = None if self._stopping() else self._test()
        if tested is None:
            self._write_row("interrupted")
            change = "replace --overwrite by --resume in" if self.config.overwrite else "add --resume to"
            say(f"Interrupted after {self.loop.iteration} iterations. To go on, {change} the same command.")
            return 130
        if self.processes.first:
            self.folder.write_tasks(tested)
            self.folder.write_picture(self.curve, f"{self.config.algo}, {self.config.setting}")
            self.folder.write_weights(self._weights())
        self._write_row("done", tested)
        self._report(tested.mean(), interval_over_tasks(tested), "done")
        return 0

    def _fail(self, error: Exception) -> int:
        """Keep the state just before a failed iteration, so that the command printed meets it again at once."""
        said = f"error: {error}"
        if not self.config.dry_run:
            if self.curve and self.loop.iteration < self.config.iterations and not self._validation_due():
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
        with self.folder.opening():
            finished = self.folder.earlier(resume=config.resume, overwrite=config.overwrite)
            if self.folder.checkpoint.exists():
                self._load()
            if finished is None:
                self.folder.write_config(config.to_json())
        return finished

    def _announce(self) -> None:
        if self.config.quiet:
            return
        adapted, total = self.loop.strategy.parameter_counts()
        where = provenance.device_name(self.device, self.processes.size)
        say(
            f"{self.config.run_id}\n"
            f"  {self.config.algo} on {self.config.backbone}: adapts {adapted:,} of {total:,} parameters"
            f"{'' if adapted else '; the inner learning rate and steps have no effect'}\n"
            f"  {where}, {torch.get_num_threads()} threads, {self.loop.chunk} tasks at a time\n"
            f"  {self._estimate()}\n"
            f"  {self.folder.path}" + (f"\n  resumes at iteration {self.loop.iteration}" if self.loop.iteration else "")
        )

    def _estimate(self) -> str:
        """Time and memory of the meta-training that is left; validation and meta-test come on top."""
        if self.loop.iteration >= self.config.iterations:
            return "no meta-training left"
        seconds = self.loop.trial_seconds()
        left = seconds * (self.config.iterations - self.loop.iteration)
        gigabytes = self.loop.chunk * self.loop.task_bytes / 1e9
        return f"about {1000 * seconds:.0f} ms an iteration, {duration(left)} of meta-training, {gigabytes:.1f} GB"

    def _train(self) -> None:
        config, saved = self.config, time.monotonic()
        if not self.curve:
            self._validate()
        with self._progress("meta-train", config.iterations, self.loop.iteration) as progress:
            while self.loop.iteration < config.iterations and not self._stopping():
                began = time.monotonic()
                result = self.loop.step()
                self.since.append((result.loss, result.accuracy))
                elapsed = time.monotonic() - began
                self.step_seconds += elapsed
                self.train_seconds += elapsed
                self.log.trained(self.loop.iteration, result.loss, result.accuracy, elapsed)
                progress.advance(1, result.loss, result.accuracy)
                if self._validation_due():
                    self._validate(progress)
                elif time.monotonic() - saved > SAVE_SECONDS:
                    self._save()
                    saved = time.monotonic()
        self._save()

    def _validation_due(self) -> bool:
        """Whether this iteration ends in a validation that the curve does not have yet."""
        due = self.loop.iteration % self.config.val_every == 0 or self.loop.iteration == self.config.iterations
        return due and not (self.curve and self.curve[-1].iteration == self.loop.iteration)

    def _validate(self, progress: Progress | None = None) -> None:
        began = time.monotonic()
        accuracy = float(self.accuracies("val", self.config.val_tasks).mean())
        self.train_seconds += time.monotonic() - began
        loss, trained = np.mean(self.since, axis=0).tolist() if self.since else (None, None)
        self.since = []
        point = CurvePoint(self.loop.iteration, loss, trained, accuracy, round(self.train_seconds, 3))
        self.curve.append(point)
        self.log.validated(point)
        if accuracy > self.best["val_accuracy"]:
            self.best = {"val_accuracy": accuracy, "model": self.loop.model_state()}
        self._save()
        if progress is not None:
            progress.note(f"iteration {point.iteration}: {SPLIT_NAMES['val']} accuracy {accuracy:.4f}")

    def _test(self) -> npt.NDArray[np.float64] | None:
        """Meta-test accuracies `[eval_tasks]` of the best checkpoint; None when asked to stop."""
        self.loop.load_model_state(self.best["model"])
        share = len(self.processes.part(self.config.eval_tasks))
        with self._progress(SPLIT_NAMES["test"], share, unit="task") as progress:
            try:
                return self.accuracies("test", self.config.eval_tasks, ending(self.stop, progress.advance))
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
            self.folder.write_curve(self.curve)

    def _state(self) -> dict[str, Any]:
        names = ("since", "best", "train_seconds", "step_seconds", "started_at")
        progress = {name: getattr(self, name) for name in names}
        data = {"image_shape": list(self.image_shape), "split_hash": self.samplers["train"].dataset.split_hash}
        return {**progress, **data, "loop": self.loop.state(), "curve": [list(p) for p in self.curve]}

    def _restore(self, state: dict[str, Any]) -> None:
        self.curve = [CurvePoint.checked(point) for point in state["curve"]]
        self.since = [(float(loss), float(accuracy)) for loss, accuracy in state["since"]]
        self.train_seconds, self.step_seconds = float(state["train_seconds"]), float(state["step_seconds"])
        self.started_at = str(state["started_at"])
        self.best = {"val_accuracy": float(state["best"]["val_accuracy"]), "model": state["best"]["model"]}
        self.loop.load_model_state(self.best["model"])  # to fail now, not after the training
        self.loop.load_state(state["loop"])

    def _load(self) -> None:
        state = load_checkpoint(self.folder.checkpoint, self.config)
        self._check_data(state.get("split_hash"))
        try:
            self._restore(state)
        except (RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
            raise UserError(
                f"Expected the parameters of {self.config.algo} in {self.folder.checkpoint}, got others: "
                f"{' '.join(str(error).split())}; was the strategy changed? Start again with --overwrite"
            ) from error

    def _check_data(self, split_hash: object) -> None:
        """A data root may move, but must hold the same classes, with the same number of images."""
        now = self.samplers["train"].dataset.split_hash
        if split_hash != now:
            raise UserError(
                f"Expected the data of the run to resume (split hash {split_hash}), got others ({now}); name its "
                "folder by --data-root, or choose another --out"
            )

    def _write_row(self, status: Status, tested: npt.NDArray[np.float64] | None = None) -> None:
        if not self.processes.first:
            return
        row = ResultRow(
            **measured_columns(self.loop, self.samplers["test"], tested),
            status=status,
            val_accuracy=self.best["val_accuracy"] if self.curve else None,
            train_seconds=round(self.train_seconds, 3),
            ms_per_iteration=round(1000 * self.step_seconds / self.loop.iteration, 3) if self.loop.iteration else None,
            git_commit=self.git_commit,
            started_at=self.started_at,
        )
        self.folder.write_row(row)
        if status != "running":
            self.log.ended(dataclasses.asdict(row))

    def _report(self, accuracy: float, ci95: float, word: str) -> None:
        if not self.config.json:
            print(summary(self.config, accuracy, ci95, f"{word}: {self.folder.result}"))  # noqa: T201

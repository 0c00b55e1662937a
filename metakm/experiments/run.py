"""One supervised run: from its data to its row."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from metakm.cli.progress import Progress, log_line
from metakm.cli.signals import StopRequest
from metakm.errors import UserError
from metakm.experiments.classification import Classification
from metakm.experiments.config import RunConfig
from metakm.experiments.row import ExperimentRow
from metakm.experiments.training import GradientMap, Training
from metakm.learning.outer_loop import DivergedError
from metakm.modulation.attachment import attachment, is_modulated
from metakm.run import provenance
from metakm.run.build import resolve_device
from metakm.run.checkpoint import load_checkpoint, restoring, save_checkpoint
from metakm.run.folder import RunFolder
from metakm.run.history import History
from metakm.run.row import Status


@dataclass(frozen=True)
class Subject:
    """What a run trains.

    network: its name for the row; model: what requires a gradient is trained; save_pack: writes the task's file
    and is None where the task has the whole network for itself.
    """

    network: str
    model: nn.Module
    map_gradient: GradientMap | None = None
    save_pack: Callable[[Any], object] | None = None


class ExperimentRun:
    """One method of an experiment with one seed.

    Raises:
        UserError: on construction, for a folder that is in use or cannot be written, or a checkpoint of another run.
    """

    def __init__(self, run: RunConfig, subject: Subject, data: Classification, stop: StopRequest) -> None:
        self.run, self.subject, self.data, self.stop = run, subject, data, stop
        self.device = resolve_device(run.config.device)
        self.training = Training(subject.model, data, run, self.device, subject.map_gradient)
        if self.training.train.per_epoch < 1:
            raise UserError(
                f"Expected at least one batch of {run.config.batch} training images, got "
                f"{len(self.training.train.labels)} images; choose a smaller --batch"
            )
        self.folder = RunFolder(run.folder, ExperimentRow)
        self.history, self.git_commit = History(), provenance.git_commit()
        self.pack_bytes: int | None = None
        self.finished = None if run.config.dry_run else self._open_folder()

    def execute(self) -> int:
        """Train, validate, test, write, let others into the folder; return the exit code of `main`."""
        try:
            return self._execute()
        finally:
            self.folder.release()

    def _execute(self) -> int:
        if self.finished is not None:
            log_line(f"{self.run.run_id}: already done, {self.folder.result}")
            return 0
        if self.stop.requested:
            raise KeyboardInterrupt
        self._announce()
        if self.run.config.dry_run:
            print(json.dumps(self.run.to_json(), indent=2))  # noqa: T201
            return 0
        self._write_row("running")
        try:
            stopped = self._train()
        except DivergedError as error:
            self._write_row("failed")
            log_line(f"error: {error}")
            return 1
        tune = self.run.config.tune
        tested = None if stopped or tune else self._test()
        if stopped or (tested is None and not tune):
            self._write_row("interrupted")
            change = "replace --overwrite by --resume in" if self.run.config.overwrite else "add --resume to"
            log_line(f"Interrupted after {self.training.iteration} iterations. To go on, {change} the same command.")
            return 130
        self._finish(tested)
        return 0

    def _open_folder(self) -> dict[str, Any] | None:
        """Claim the run folder; take up its checkpoint, or return its row, when resuming."""
        config = self.run.config
        return self.folder.begin(self.run.to_json(), self._load, resume=config.resume, overwrite=config.overwrite)

    def _announce(self) -> None:
        trainable, total = self._counts()
        log_line(
            f"{self.run.run_id}\n  {self.subject.network}: trains {trainable:,} of {total:,} parameters\n"
            f"  {self.device}, {torch.get_num_threads()} threads, {self.training.iterations} iterations, "
            f"learning rate {self.run.learning_rate:g}\n  {self.folder.path}"
            + (f"\n  resumes at iteration {self.training.iteration}" if self.training.iteration else "")
        )

    def _train(self) -> bool:
        """Train and validate; return whether asked to stop."""
        training = self.training
        with Progress(f"{self.run.method}: train", training.iterations, training.iteration) as progress:
            while training.iteration < training.iterations and not self.stop.requested:
                result, _ = self.history.step(training)
                progress.advance(1, result.loss, result.accuracy)
                if training.iteration % training.train.per_epoch == 0:
                    self._validate(progress)
                elif self.history.save_due:
                    self._save()
        self._save()
        return self.stop.requested

    def _validate(self, progress: Progress) -> None:
        point = self.history.validate(self.training.iteration, lambda: self.training.accuracy("val"))
        self._save()
        progress.note(f"iteration {point.iteration}: validation accuracy {point.val_accuracy:.4f}")

    def _test(self) -> float | None:
        """Accuracy on the test part; None when asked to stop."""
        with Progress(f"{self.run.method}: test", len(self.training.parts["test"].labels), unit="image") as progress:

            def advance(images: int) -> None:
                progress.advance(images)
                if self.stop.requested:
                    raise StopIteration

            try:
                return self.training.accuracy("test", advance)
            except StopIteration:
                return None

    def _finish(self, tested: float | None) -> None:
        if self.subject.save_pack is not None:
            path = self.folder.path / "pack.safetensors"
            self.subject.save_pack(path)
            self.pack_bytes = path.stat().st_size
        self.folder.write_picture(self.history.curve, f"{self.run.experiment}, {self.run.method}", stage="")
        self._write_row("done", tested)
        word = "not tested (--tune)" if tested is None else f"test accuracy {100 * tested:.2f} %"
        accuracy = 100 * self.history.curve[-1].val_accuracy
        print(  # noqa: T201
            f"{self.run.experiment} {self.run.method} ({self.run.config.preset}, seed {self.run.config.seed}): "
            f"validation accuracy {accuracy:.2f} %, {word}, done: {self.folder.result}",
            flush=True,
        )

    def _save(self) -> None:
        state = {**self.history.state(), "training": self.training.state(), "split_hash": self.data.train.split_hash}
        save_checkpoint(self.folder.checkpoint, self.run, state)
        self.folder.write_curve(self.history.curve)
        self.history.saved()

    def _load(self) -> None:
        state = load_checkpoint(self.folder.checkpoint, self.run)
        with restoring(self.folder.checkpoint, state, self.data.train.split_hash, self.run.method):
            self.history.load_state(state)
            self.training.load_state(state["training"])

    def _counts(self) -> tuple[int, int]:
        """Trainable and all parameters; random bases train as many numbers as they have directions."""
        total = sum(p.numel() for p in self.training.model.parameters())
        directions = getattr(self.subject.map_gradient, "directions", None)
        trained = sum(p.numel() for p in self.training.parameters)
        return (trained if directions is None else int(directions)), total

    def _write_row(self, status: Status, tested: float | None = None) -> None:
        config, training, curve = self.run.config, self.training, self.history.curve
        trainable, total = self._counts()
        n_test = 0 if tested is None else len(training.parts["test"].labels)
        row = ExperimentRow(
            run_id=self.run.run_id,
            status=status,
            experiment=self.run.experiment,
            method=self.run.method,
            dataset=self.data.train.name,
            network=self.subject.network,
            seed=config.seed,
            preset=config.preset,
            image_size=config.image_size,
            n_train=len(training.train.labels),
            epochs=config.epochs,
            batch=config.batch,
            optimiser=config.optimiser,
            learning_rate=self.run.learning_rate,
            iterations=training.iteration,
            trainable_parameters=trainable,
            total_parameters=total,
            pack_bytes=self.pack_bytes,
            train_accuracy=curve[-1].train_accuracy if curve else None,
            val_accuracy=curve[-1].val_accuracy if curve else None,
            accuracy=tested,
            ci95=None if tested is None else 1.96 * math.sqrt(tested * (1 - tested) / n_test),
            n_test=n_test,
            train_seconds=round(self.history.train_seconds, 3),
            ms_per_iteration=self.history.ms_per_iteration(training.iteration),
            peak_memory_mb=provenance.peak_memory_mb(self.device),
            device=provenance.device_name(self.device),
            threads=torch.get_num_threads(),
            torch_version=torch.__version__,
            metakm_version=version("metakm"),
            git_commit=self.git_commit,
            split_hash=self.data.train.split_hash,
            started_at=self.history.started_at,
            start=_start(training.model),
        )
        self.folder.write_row(row)


def _start(model: nn.Module) -> str:
    """How the modulators of a model started; empty where there are none."""
    found = attachment(model) if is_modulated(model) else None
    return found.start if found is not None and found.layers else ""

"""One supervised run: from its data to its row."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from metakm.cli.signals import Stoppable
from metakm.device import resolve_device
from metakm.errors import UserError
from metakm.experiments.batches import IMAGENET, Normalisation
from metakm.experiments.classification import Classification
from metakm.experiments.config import MethodConfig
from metakm.experiments.right import write_right
from metakm.experiments.row import ExperimentRow
from metakm.experiments.training import GradientMap, Training
from metakm.modulation.attachment import attachment, is_modulated
from metakm.run.folder import RunFolder
from metakm.run.kind import Accuracies
from metakm.run.row import Status
from metakm.run.training_run import TrainingRun


@dataclass(frozen=True)
class MethodSetup:
    """What a run trains.

    network: its name for the row; model: what requires a gradient is trained; save_pack: writes the task's file
    and is None where the task has the whole network for itself; the others: see `Training`.
    """

    network: str
    model: nn.Module
    map_gradient: GradientMap | None = None
    save_pack: Callable[[Any], object] | None = None
    normalisation: Normalisation = IMAGENET
    hold_statistics: bool = False


class ExperimentRun(TrainingRun[Training]):
    """One method of an experiment with one seed.

    Raises:
        UserError: on construction, for a folder that is in use or cannot be written, a checkpoint of another run, or a
            network that does not turn these images into logits.
    """

    config: MethodConfig

    def __init__(self, config: MethodConfig, setup: MethodSetup, data: Classification, stop: Stoppable) -> None:
        self.config, self.setup, self.data = config, setup, data
        self.device = resolve_device(config.execution.device)
        own = (setup.map_gradient, setup.normalisation, setup.hold_statistics)
        training = Training(setup.model, data, config, self.device, *own)
        if training.train.per_epoch < 1:
            raise UserError(
                f"Expected at least one batch of {config.flags.batch} training images, got "
                f"{len(training.train.labels)} images; choose a smaller --batch"
            )
        _check_network(setup, training, data.train.n_classes)
        self.pack_bytes: int | None = None
        super().__init__(
            config,
            training,
            owner=config.method,
            iterations=training.iterations,
            val_every=training.train.per_epoch,
            split_hashes={split: part.split_hash for split, part in vars(data).items()},
            folder=RunFolder(config.folder, ExperimentRow),
            stop=stop,
        )

    def announcement(self) -> str:
        """Network, device and schedule."""
        trainable, total = self._counts()
        return (
            f"  {self.setup.network}: trains {trainable:,} of {total:,} parameters\n"
            f"  {self.device}, {torch.get_num_threads()} threads, {self.iterations} iterations, "
            f"learning rate {self.config.learning_rate:g}"
        )

    def validation_accuracy(self) -> float:
        """On the validation part; NaN if that is trained on."""
        return float(self.loop.correct("val").mean()) if self.config.flags.holds_out else math.nan

    @property
    def test_total(self) -> int:
        """Images of the test part, which `--tune` leaves alone."""
        return 0 if self.config.flags.tune else len(self.loop.parts["test"].labels)

    def test_accuracies(self, progress: Callable[[int], None]) -> Accuracies:
        """1 for each image of the test part that is classified correctly, else 0."""
        return self.loop.correct("test", progress)

    def write_results(self, tested: Accuracies | None) -> None:
        """The task's pack, if the method has one, which test images are right, and curve.png."""
        if tested is not None:
            write_right(self.folder.path, tested)
        if self.setup.save_pack is not None:
            path = self.folder.path / "pack.safetensors"
            self.setup.save_pack(path)
            self.pack_bytes = path.stat().st_size
        title = f"{self.config.experiment}, {self.config.method}"
        self.folder.write_picture(self.history.curve, title, self.stage)

    def _counts(self) -> tuple[int, int]:
        """Trainable and all parameters; random bases train as many numbers as they have directions."""
        total = sum(p.numel() for p in self.loop.model.parameters())
        directions = getattr(self.setup.map_gradient, "directions", None)
        trained = sum(p.numel() for p in self.loop.parameters)
        return (trained if directions is None else int(directions)), total

    def _class_accuracy(self, tested: Accuracies) -> float:
        """Mean over classes of the share of their test images that is right."""
        labels = self.loop.parts["test"].labels.numpy()
        return float((np.bincount(labels, weights=tested) / np.bincount(labels)).mean())

    def row(self, status: Status, tested: Accuracies | None) -> ExperimentRow:
        """See `ExperimentRow`."""
        config, flags, curve = self.config, self.config.flags, self.history.curve
        trainable, total = self._counts()
        accuracy, n_test = (None, 0) if tested is None else (float(tested.mean()), len(tested))
        return ExperimentRow(
            **self.progress_columns(),
            **self.history.origin,
            run_id=config.run_id,
            status=status,
            experiment=config.experiment,
            method=config.method,
            dataset=self.data.train.name,
            network=self.setup.network,
            seed=flags.seed,
            preset=flags.preset,
            image_size=flags.image_size,
            n_train=len(self.loop.train.labels),
            epochs=flags.epochs,
            batch=flags.batch,
            optimiser=flags.optimiser,
            learning_rate=config.learning_rate,
            iterations=self.loop.iteration,
            trainable_parameters=trainable,
            total_parameters=total,
            pack_bytes=self.pack_bytes,
            train_accuracy=curve[-1].train_accuracy if curve else None,
            val_accuracy=curve[-1].val_accuracy if curve and curve[-1].validated else None,
            accuracy=accuracy,
            ci95=None if accuracy is None else 1.96 * math.sqrt(accuracy * (1 - accuracy) / n_test),
            n_test=n_test,
            training_memory_mb=self.loop.memory.mb,
            class_accuracy=None if tested is None else self._class_accuracy(tested),
            split_hash=self.split_hashes["train"],
            started_at=self.history.started_at,
            residual_start=config.residual_start,
            start=_start(self.loop.model),
        )

    def summary(self, row: dict[str, Any], ending: str) -> str:
        """The run, its validation accuracy if there is one, and its test accuracy."""
        tested, validated = row["accuracy"], row["val_accuracy"]
        validation = "" if validated is None else f"validation accuracy {100 * validated:.2f} %, "
        test = "not tested (--tune)" if tested is None else f"test accuracy {100 * tested:.2f} %"
        name = f"{row['experiment']} {row['method']} ({row['preset']}, seed {row['seed']})"
        return f"{name}: {validation}{test}, {ending}"


def _check_network(setup: MethodSetup, training: Training, classes: int) -> None:
    """Try two images on a copy."""
    images = training.first_images()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = copy.deepcopy(training.model).train()(images)
    except Exception as error:  # of whatever network
        raise UserError(
            f"Expected a network for images of {images.shape[-1]} px, got {type(error).__name__} from {setup.network}: "
            f"{error}; choose another --image-size or --backbone"
        ) from error
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != (len(images), classes):
        raise UserError(
            f"Expected logits {(len(images), classes)} from {setup.network}, got {shape}; choose another --backbone"
        )


def _start(model: nn.Module) -> str:
    """How the modulators of a model started; empty where there are none."""
    found = attachment(model) if is_modulated(model) else None
    return found.start if found is not None and found.layers else ""

"""The row of one supervised run: one experiment of the paper, one method, one seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from metakm.config.execution import SHARED_EXECUTION_FIELDS
from metakm.run.row import CsvRow, Status

# Fields of a run's config.json that say where and how it is executed, and which others with it: not what it computes.
EXPERIMENT_EXECUTION_FIELDS = SHARED_EXECUTION_FIELDS | {"methods"}


@dataclass(frozen=True, kw_only=True)
class ExperimentRow(CsvRow):
    """One run. Accuracies are fractions; None is a number that was not measured, an empty cell in the file."""

    FILE: ClassVar[str] = "experiment.csv"
    FINISHED: ClassVar[tuple[str, ...]] = ("train_accuracy",)
    FORMER: ClassVar[frozenset[str]] = frozenset({"peak_memory_mb"})

    run_id: str
    status: Status
    experiment: str
    method: str
    dataset: str
    network: str
    seed: int
    preset: str
    image_size: int
    n_train: int  # training images
    epochs: int
    batch: int
    optimiser: str
    learning_rate: float
    iterations: int  # done
    trainable_parameters: int
    total_parameters: int  # with the modulators
    pack_bytes: int | None  # size of the task's file; None where the whole network is the task's
    train_accuracy: float | None  # mean over the last epoch's batches, augmented, each before its step
    val_accuracy: float | None  # after the last epoch; empty where the run trained on the validation part
    accuracy: float | None  # on the test part, after the last epoch
    ci95: float | None  # half-width of the 95 % interval of that accuracy over test images, 1.96 sqrt(p (1 - p) / n)
    n_test: int
    train_seconds: float  # wall time of training, validation included
    ms_per_iteration: float | None  # mean wall time of a training iteration, validation excluded
    device: str  # this and the next four: `a + b` for a run that was resumed with another
    threads: str
    torch_version: str
    metakm_version: str
    git_commit: str
    split_hash: str
    started_at: str  # UTC, ISO 8601
    start: str = ""  # of the kernel modulators: exact or paper; empty without any, or where a row is older: then paper
    residual_start: float = 1.0  # of the scale of each residual block's last norm; tbn draws its own
    training_memory_mb: float | None = None  # see `TrainingMemory`; empty where the system does not tell
    class_accuracy: float | None = None  # mean over classes of their test accuracies; empty where a row is older

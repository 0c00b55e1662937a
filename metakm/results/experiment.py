"""The row of one supervised run: an experiment of the paper, one of its methods, one seed."""

from __future__ import annotations

from dataclasses import dataclass

from metakm.results.row import CsvRow, Status

FILE = "experiment.csv"


@dataclass(frozen=True, kw_only=True)
class ExperimentRow(CsvRow):
    """One run. Accuracies are fractions; None is a number that was not measured, an empty cell in the file."""

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
    val_accuracy: float | None  # after the last epoch
    accuracy: float | None  # on the test part, after the last epoch
    ci95: float | None  # half-width of the 95 % interval of that accuracy over test images, 1.96 sqrt(p (1 - p) / n)
    n_test: int
    train_seconds: float  # wall time of training, validation included
    ms_per_iteration: float | None  # mean wall time of a training iteration, validation excluded
    peak_memory_mb: float  # largest resident set of the process, or allocation on the GPU; 10^6 bytes
    device: str
    threads: int
    torch_version: str
    metakm_version: str
    git_commit: str
    split_hash: str
    started_at: str  # UTC, ISO 8601

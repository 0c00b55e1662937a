"""The row of one run: its columns, in order."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass, fields
from typing import Literal

import pandas as pd

Status = Literal["running", "interrupted", "failed", "done"]


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One run. Accuracies are fractions; None is a number that was not measured, an empty cell in the file."""

    run_id: str
    status: Status
    algo: str
    dataset: str
    ways: int
    shots: int
    queries: int
    seed: int
    preset: str
    backbone: str
    bn_mode: str
    first_order: bool
    inner_lr: float
    inner_steps: int
    test_inner_steps: int
    meta_batch: int
    meta_lr: float
    iterations: int
    adapted_parameters: int
    total_parameters: int
    val_accuracy: float | None  # best meta-validation accuracy, of the checkpoint that was tested
    accuracy: float | None  # mean over the meta-test tasks
    ci95: float | None  # half-width of the 95 % interval of that mean over tasks
    n_tasks: int
    train_seconds: float  # wall time of meta-training, validation included
    ms_per_iteration: float | None  # mean wall time of a meta-training iteration, validation excluded
    peak_memory_mb: float  # largest resident set of the process, or allocation on the GPU; 10^6 bytes
    device: str
    threads: int
    torch_version: str
    metakm_version: str
    git_commit: str
    split_hash: str
    episodes_hash: str  # of the meta-test episodes
    started_at: str  # UTC, ISO 8601

    def to_csv(self) -> str:
        """Header and row."""
        buffer = io.StringIO()
        pd.DataFrame([asdict(self)], columns=list(COLUMNS)).to_csv(buffer, index=False)
        return buffer.getvalue()


COLUMNS = tuple(field.name for field in fields(ResultRow))

"""The columns of a row that a meta-test fills in."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from metakm.config import RunConfig
from metakm.config.dataset_names import dataset_names
from metakm.data.episodes import SplitSampler
from metakm.learning.evaluator import Evaluator
from metakm.learning.statistics import interval_over_tasks
from metakm.presets import changes_from_preset
from metakm.run.peak_memory import peak_memory_mb
from metakm.run.row import ResultRow


def evaluation_columns(
    config: RunConfig,
    evaluator: Evaluator,
    sampler: SplitSampler,
    origin: Mapping[str, str],
    tested: npt.NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    """The columns of a `ResultRow` that a test determines, with those of the config; not those about the training.

    Args:
        sampler: the episodes that `tested` is of.
        origin: see `metakm.run.provenance.origin`.
        tested: accuracies `[n]`; None before the meta-test, which leaves its numbers empty.
    """
    adapted, total = evaluator.learner.strategy.parameter_counts()
    known = {**config.defaults(), **config.flat(), "run_id": config.run_id}
    own = {f.name: known[f.name] for f in dataclasses.fields(ResultRow) if f.name in known}
    return {
        **own,
        **origin,
        "adapted_parameters": adapted,
        "total_parameters": total,
        "accuracy": None if tested is None else float(tested.mean()),
        "ci95": None if tested is None else interval_over_tasks(tested, len(dataset_names(config.dataset))),
        "n_tasks": 0 if tested is None else len(tested),
        "peak_memory_mb": peak_memory_mb(evaluator.device),
        "split_hash": sampler.dataset.split_hash,
        "episodes_hash": sampler.hash(index=0, tasks=config.eval_tasks),
        "changes": json.dumps(changes_from_preset(config)),
    }

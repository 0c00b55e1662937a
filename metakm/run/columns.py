"""The columns of a row that a meta-test fills in, and its line on the terminal."""

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
from metakm.run import provenance
from metakm.run.row import ResultRow
from metakm.strategies import Strategy
from metakm.strategies.registry import strategy_class

SPLIT_NAMES = {"val": "meta-validation", "test": "meta-test"}


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
        "peak_memory_mb": provenance.peak_memory_mb(evaluator.device),
        "split_hash": sampler.dataset.split_hash,
        "episodes_hash": sampler.hash(index=0, tasks=config.eval_tasks),
        "changes": json.dumps(changes_from_preset(config)),
    }


def format_metric(algo: str, value: float, width: float | None = None, sign: str = "") -> str:
    """An accuracy in percent, or a strategy's own metric as it is; with the half-width of its interval, if known."""
    factor, digits, unit = (1, "4g", "") if _own_metric(algo) else (100, "2f", " %")
    interval = "" if width is None else f" +- {factor * width:.{digits}}"
    return f"{factor * value:{sign}.{digits}}{interval}{unit}"


def _own_metric(algo: str) -> bool:
    return strategy_class(algo).metric is not Strategy.metric


def summary(config: RunConfig, accuracy: float, ci95: float, ending: str, tested: str = SPLIT_NAMES["test"]) -> str:
    """One line: the run, its accuracy or own metric on the split called `tested`, and `ending`."""
    c = config
    return (
        f"{c.algo} {c.dataset} {c.ways}-way {c.shots}-shot ({c.preset}, seed {c.seed}, batch norm {c.bn_mode}): "
        f"{tested} {'metric' if _own_metric(c.algo) else 'accuracy'} {format_metric(c.algo, accuracy, ci95)} "
        f"(95 % interval over {c.eval_tasks} tasks), {ending}"
    )

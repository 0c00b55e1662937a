"""Defaults of a run by preset and setting: the published protocols, a scaled-down quick one, and a tuned one."""

from __future__ import annotations

from typing import Any

from metakm.config import VARIANTS, RunConfig
from metakm.strategies.registry import available_strategies, strategy_class

_photographs = frozenset({"folder", "mini-imagenet", "tiny-imagenet"})


def default_ways(dataset: str) -> int:
    """Ways of the published protocol of a dataset."""
    return 5 if dataset in _photographs else 20


def preset_config(
    preset: str = "quick",
    algo: str = "km",
    dataset: str = "glyphs",
    ways: int | None = None,
    shots: int = 1,
    **overrides: Any,
) -> RunConfig:
    """The `RunConfig` of a preset for one setting; `overrides` are fields of `RunConfig`.

    Raises:
        UserError: a value out of range (see `RunConfig`).
    """
    ways = default_ways(dataset) if ways is None else ways
    build = {"paper": _paper, "tuned": _tuned}.get(preset, _quick)
    refused = _refused(algo)
    values = {k: v for k, v in build(dataset, ways, shots).items() if k not in refused} | overrides
    return RunConfig(preset=preset, algo=algo, dataset=dataset, ways=ways, shots=shots, **values)  # type: ignore[arg-type]


def _refused(algo: str) -> frozenset[str]:
    """What a preset must not set for a strategy. One that is not known yet, such as a plugin's, has no prototypes."""
    if algo not in available_strategies():
        return frozenset({"scaled_distance"})
    return frozenset(VARIANTS) - strategy_class(algo).variants


def _paper(dataset: str, ways: int, shots: int) -> dict[str, Any]:
    """Finn et al. 2017, App. A.1 and their code; Raghu et al. 2020 use the same."""
    common = {"meta_lr": 1e-3, "iterations": 60_000, "schedule": "constant", "val_tasks": 200, "val_every": 1000}
    common |= {"scaled_distance": True}
    if dataset in _photographs:
        return common | {
            "backbone": "conv4-32-pool",
            "queries": 15,
            "inner_lr": 0.01 * ways,
            "inner_steps": 5,
            "test_inner_steps": 10,
            "meta_batch": 4 if shots == 1 else 2,
            "grad_clip": 10.0,
        }
    return common | {
        "backbone": "conv4-64-stride",
        "queries": shots,
        "inner_lr": 0.1 * ways,
        "inner_steps": 5,
        "test_inner_steps": 5,
        "meta_batch": 16,
        "grad_clip": 0.0,
    }


def _quick(dataset: str, ways: int, shots: int) -> dict[str, Any]:
    """The published networks and inner steps with fewer iterations, more queries and a decaying rate.

    Chosen for KM on Omniglot's 20-way 1-shot meta-validation; the other settings are scaled by estimate.
    """
    quick = {"schedule": "cosine", "meta_lr": 3e-3, "grad_clip": 10.0, "val_every": 100, "val_tasks": 100}
    if dataset in _photographs:
        return {
            **_paper(dataset, ways, shots),
            **quick,
            "iterations": 400 if shots == 1 else 250,
            "test_inner_steps": 5,
            "val_tasks": 50,
        }
    return {
        **_paper(dataset, ways, shots),
        **quick,
        "iterations": 500 if shots == 1 else 350,
        "meta_batch": 8 if shots == 1 else 4,
        "queries": 5,
        "inner_lr": 0.5,
    }


def _tuned(dataset: str, ways: int, shots: int) -> dict[str, Any]:
    """Longer than quick, with small meta-batches, hard clipping and a head that starts at zero.

    Characters get pooling and inner rates for each step, too. Searched on Omniglot 20-way 1-shot (the head and the test
    steps on 5-shot too) and on tiny-ImageNet 5-way 1-shot: see results/search/. More shots cost more for each task:
    they get half the tasks, not searched.
    """
    tuned = {
        **_quick(dataset, ways, shots),
        "meta_batch": 2 if shots == 1 else 1,
        "grad_clip": 0.01,
        "zero_head": True,
        "test_inner_steps": 10,
        "val_every": 500 if shots == 1 else 1000,
        "val_tasks": 200,
    }
    if dataset in _photographs:
        return tuned | {"iterations": 2500}
    return tuned | {
        "backbone": "conv4-64-pool",
        "iterations": 5000,
        "inner_lr": 0.1,
        "learn_inner_lr": True,
        "inner_lr_per_step": True,
        "first_head_lr": 10.0,
    }

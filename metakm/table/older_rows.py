"""What a run changed of its preset, for rows older than the column `changes`.

The presets, defaults and strategies are recorded here as they were when that column was added, so that these rows keep
their meaning when presets change. Newer rows do not need this: they say what they changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from metakm.config import NAMED_IN_ROW
from metakm.errors import UserError, unknown_name
from metakm.run.row import ResultRow

DEFAULTS: dict[str, Any] = {
    "test_queries": 0, "first_order": False, "implicit": False, "learn_inner_lr": False, "inner_lr_per_step": False,
    "init_from": None, "weights": None, "split": None, "split_seed": 0, "train_ways": None, "train_shots": None,
    "nonnegative_inner_lr": False, "first_head_lr": 0.0, "zero_head": False,
    "multi_step_loss": 0, "ema": 0.0, "augment": False, "normal_head": False, "scaled_distance": False,
    "bn_mode": "transductive", "precision": "fp32", "image_size": 0, "eval_tasks": 600, "select": "best",
}  # fmt: skip
"""Fields that a config may lack: such a field was added after the run; assume its default."""
_MODULATOR = {"depth": 2, "activation": "tanh", "init": "identity", "start": "paper"}  # of km and km-proto

_CHARACTERS = ("glyphs", "omniglot")
_PHOTOGRAPHS = ("folder", "mini-imagenet", "tiny-imagenet")
_NOT_SET: dict[str, tuple[str, ...]] = {  # what presets left out for a strategy; for others, the distance's scale
    **dict.fromkeys(("anil-proto", "km-proto", "maml-proto", "protonet"), ("normal_head",)),
    **dict.fromkeys(("boil", "meta-sgd", "reptile"), ("normal_head", "scaled_distance")),
}


def changes_of_older(row: ResultRow, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings that differ from the preset, for a run whose row does not record them.

    Without a config, they are inferred from the row and its run_id, and its absence counts as a change. A field without
    a default that is missing from the config is "unknown".

    Raises:
        UserError: a dataset or setting for which there was no preset.
    """
    preset = _preset(row)
    own = {name: getattr(row, name) for name in preset if hasattr(row, name)} | {"eval_tasks": row.n_tasks}
    if config is None:
        variants = re.search(rf"-{re.escape(row.algo)}-(.+)-{row.preset}-seed\d+-[0-9a-f]+$", row.run_id)
        own["config.json"] = "missing" + (f" ({variants[1]})" if variants else "")
    else:
        own = dict.fromkeys(preset, "unknown") | _defaults(row.algo) | own | dict(config)
    return {name: v for name, v in own.items() if name not in NAMED_IN_ROW and preset.get(name) != v}


def _defaults(algo: str) -> dict[str, Any]:
    modulator = _MODULATOR if algo in ("km", "km-proto") else {}
    return DEFAULTS | {f"{algo}.{name}": value for name, value in modulator.items()}


def _preset(row: ResultRow) -> dict[str, Any]:
    """All fields as set by the row's preset for its strategy and setting."""
    if row.dataset not in _CHARACTERS + _PHOTOGRAPHS:
        raise unknown_name("dataset", row.dataset, _CHARACTERS + _PHOTOGRAPHS)
    if row.ways < 2 or row.shots < 1:
        raise UserError(f"Expected 2 or more ways and 1 or more shots, got {row.ways} and {row.shots}")
    build = _paper if row.preset == "paper" else _quick
    found = build(row.dataset in _PHOTOGRAPHS, row.ways, row.shots)
    not_set = _NOT_SET.get(row.algo, ("scaled_distance",))
    return _defaults(row.algo) | {name: value for name, value in found.items() if name not in not_set}


def _paper(photographs: bool, ways: int, shots: int) -> dict[str, Any]:
    common = {
        "meta_lr": 1e-3, "iterations": 60_000, "schedule": "constant", "val_tasks": 200, "val_every": 1000,
        "select": "last", "scaled_distance": True,
    }  # fmt: skip
    if photographs:
        return common | {
            "backbone": "conv4-32-pool", "queries": 15, "test_queries": shots, "inner_lr": 0.01 * ways,
            "inner_steps": 5, "test_inner_steps": 10, "meta_batch": 4 if shots == 1 else 2,
            "grad_clip": 10 * shots / (ways * 15),
        }  # fmt: skip
    five = {"inner_lr": 0.4 * ways, "inner_steps": 1, "test_inner_steps": 3, "meta_batch": 32}
    others = {"inner_lr": 0.1 * ways, "inner_steps": 5, "test_inner_steps": 5, "meta_batch": 16}
    own = five if ways == 5 else others
    return common | own | {"backbone": "conv4-64-stride", "queries": shots, "grad_clip": 0.0, "normal_head": True}


def _quick(photographs: bool, ways: int, shots: int) -> dict[str, Any]:
    quick = _paper(photographs, ways, shots) | {
        "schedule": "cosine", "meta_lr": 3e-3, "grad_clip": 10.0, "val_every": 100, "inner_steps": 5,
        "test_inner_steps": 5, "test_queries": 0, "select": "best", "normal_head": False,
    }  # fmt: skip
    if photographs:
        return quick | {"iterations": 400 if shots == 1 else 250, "val_tasks": 50}
    iterations, meta_batch = (500, 8) if shots == 1 else (350, 4)
    return quick | {
        "iterations": iterations, "meta_batch": meta_batch, "val_tasks": 100, "queries": 5, "inner_lr": 0.5,
    }  # fmt: skip

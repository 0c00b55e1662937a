"""Defaults of a run by preset and setting: the published protocols, a quick one, and one for Table III.

`paper` is the protocol of Finn et al. 2017, App. A.1, and their code, which Raghu et al. 2020 use, too. Their losses
are sums over images and ours are means, so inner rates and clipping are converted: a rate for the sum over N*K support
images divided by K becomes N times as large for their mean, and a gradient of the sum over N*Q queries divided by K is
N*Q/K times that of their mean. Remaining differences from the published protocol:

- Batch norm has a learned scale (gamma), and an epsilon of 1e-5; theirs only has a shift, and 1e-3.
- A stride of 2 pads 1 pixel on all sides; TensorFlow's "SAME" pads an even image at the bottom and on the right.
- The head is initialised from U(-1/sqrt(F), 1/sqrt(F)) on photographs; theirs with Xavier's rule and a bias of 0.
- Meta-training tasks are always new; their code draws 200,000 in advance.
- Meta-validation, which chooses nothing (`select` is `last`), tests like the meta-test, with more steps than theirs.
- `protonet` and the strategies with prototypes scale distances (`metakm/strategies/protonet.py`).
- Datasets but `omniglot` and `mini-imagenet`, and ways and shots other than 5 or 20 and 1 or 5, have no published
  protocol here: they use that of photographs (mini-ImageNet) or of characters (Omniglot), the 20-way one except for
  exactly 5 ways.

A strategy whose own values differ says so in its file: `Strategy.preset_values`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, get_args

from metakm.config import NAMED_IN_ROW, PresetName, RunConfig, options_of
from metakm.config.protocol import LEGACY_DEFAULTS
from metakm.data.registry import Family, dataset_entry
from metakm.errors import UserError, unknown_name
from metakm.models.registry import OWN
from metakm.options import SHARED, option_types
from metakm.strategies.registry import strategy_class


def default_ways(dataset: str) -> int:
    """The number of ways in the published protocol of a dataset.

    Raises:
        UserError: an unknown dataset.
    """
    return dataset_entry(dataset).ways


def preset_config(
    preset: str = "quick",
    algo: str = "km",
    dataset: str = "glyphs",
    ways: int | None = None,
    shots: int = 1,
    **overrides: Any,
) -> RunConfig:
    """The `RunConfig` of a preset for one setting; `overrides` are fields and options by their flat names.

    Raises:
        UserError: an unknown strategy or dataset, an option that the strategy does not have, or a value out of
            range (see `RunConfig`).
    """
    ways = default_ways(dataset) if ways is None else ways
    return RunConfig.from_flat({**preset_values(preset, algo, dataset, ways, shots), **overrides})


def preset_values(preset: str, algo: str, dataset: str, ways: int | None, shots: int) -> dict[str, Any]:
    """What a preset sets for one setting, by the flat names of a run's config, the setting included.

    Raises:
        UserError: an unknown preset, strategy or dataset.
    """
    if preset not in _VALUES:
        raise unknown_name("--preset", preset, _VALUES)
    ways = default_ways(dataset) if ways is None else ways
    values = {**_VALUES[preset](dataset, ways, shots), **_own_values(algo, preset, dataset)}
    refused = {*SHARED} - {*option_types(options_of(algo))}
    values = {name: value for name, value in values.items() if name not in refused}
    if strategy_class(algo).own_network:
        values["backbone"] = OWN
    setting = {"preset": preset, "algo": algo, "dataset": dataset, "ways": ways, "shots": shots}
    return {**LEGACY_DEFAULTS, **setting, **values}


def _own_values(algo: str, preset: str, dataset: str) -> Mapping[str, Any]:
    """What the strategy itself says: see `Strategy.preset_values`."""
    own = strategy_class(algo).preset_values
    known = {*itertools.product(get_args(PresetName), get_args(Family))}
    if unknown := [key for key in own if key not in known]:
        raise UserError(
            f"Expected preset_values of {algo!r} to be by preset and family, such as ('quick', 'characters'), got "
            f"{unknown[0]!r}; name a preset ({', '.join(get_args(PresetName))}) and a family "
            f"({', '.join(get_args(Family))})"
        )
    return own.get((preset, dataset_entry(dataset).family), {})


def changes_from_preset(config: RunConfig) -> dict[str, Any]:
    """The settings of a run that differ from its preset, as JSON values, except those that select the preset."""
    preset = preset_config(config.preset, config.algo, config.dataset, config.ways, config.shots).identity()
    own = {name: value for name, value in config.identity().items() if name not in NAMED_IN_ROW}
    return {name: value for name, value in sorted(own.items()) if name not in preset or preset[name] != value}


def _paper(dataset: str, ways: int, shots: int) -> dict[str, Any]:
    """See the module: Finn et al. 2017, App. A.1 and their code."""
    common = {
        "meta_lr": 1e-3,
        "iterations": 60_000,
        "schedule": "constant",
        "val_tasks": 200,
        "val_every": 1000,
        "select": "last",
        "scaled_distance": True,
    }
    if dataset_entry(dataset).family == "photographs":
        queries = 15
        return common | {
            "backbone": "conv4-32-pool",
            "queries": queries,
            "test_queries": shots,
            "inner_lr": 0.01 * ways,
            "inner_steps": 5,
            "test_inner_steps": 10,
            "meta_batch": 4 if shots == 1 else 2,
            "grad_clip": 10 * shots / (ways * queries),  # of the mean over queries; theirs is the sum / shots
        }
    five = {"inner_lr": 0.4 * ways, "inner_steps": 1, "test_inner_steps": 3, "meta_batch": 32}
    others = {"inner_lr": 0.1 * ways, "inner_steps": 5, "test_inner_steps": 5, "meta_batch": 16}
    own = five if ways == 5 else others
    return common | own | {"backbone": "conv4-64-stride", "queries": shots, "grad_clip": 0.0, "normal_head": True}


def _quick(dataset: str, ways: int, shots: int) -> dict[str, Any]:
    """The published networks and inner steps with fewer iterations, more queries and a decaying rate.

    Chosen for KM on Omniglot's 20-way 1-shot meta-validation; the other settings are scaled by estimate.
    """
    quick = {
        **_paper(dataset, ways, shots),
        "schedule": "cosine",
        "meta_lr": 3e-3,
        "grad_clip": 10.0,
        "val_every": 100,
        "inner_steps": 5,
        "test_inner_steps": 5,
        "test_queries": 0,
        "select": "best",
        "normal_head": False,
    }
    if dataset_entry(dataset).family == "photographs":
        return quick | {"iterations": 400 if shots == 1 else 250, "val_tasks": 50}
    return quick | {
        "iterations": 500 if shots == 1 else 350,
        "meta_batch": 8 if shots == 1 else 4,
        "val_tasks": 100,
        "queries": 5,
        "inner_lr": 0.5,
    }


_ITERATIONS = {"characters": {1: 8_000, 5: 4_000}, "photographs": {1: 6_000, 5: 5_000}}


def _table3(dataset: str, ways: int, shots: int) -> dict[str, Any]:
    """Table III in one to three hours of one core for a run of KM or MAML, an eighth to two fifths of that for ANIL.

    The same values for all strategies, chosen on the meta-validation of 1-shot settings (results/search/); 5 shots use
    them with half the tasks per iteration.
    """
    del ways
    family = dataset_entry(dataset).family
    iterations = _ITERATIONS[family][1 if shots == 1 else 5]
    common = {
        "queries": 10,
        "test_queries": shots,
        "meta_batch": 2 if shots == 1 else 1,
        "meta_lr": 3e-3,
        "iterations": iterations,
        "schedule": "cosine",
        "select": "last",
        "val_every": iterations // 4,
        "val_tasks": 100,
        "scaled_distance": True,
        "zero_head": True,
        "grad_clip": 0.01,
        "inner_steps": 5,
        "learn_inner_lr": True,
        "inner_lr_per_step": True,
    }
    if family == "photographs":
        return common | {"backbone": "conv4-32-pool", "inner_lr": 0.05, "test_inner_steps": 5}
    return common | {"backbone": "conv4-64-pool", "inner_lr": 0.1, "first_head_lr": 10.0, "test_inner_steps": 20}


_VALUES = {"quick": _quick, "paper": _paper, "table3": _table3}

"""Folders of finished runs for tests, written by the code that real runs write theirs with."""

import dataclasses
import json

import numpy as np
import pandas as pd
import torch

from metakm.learning.statistics import interval_over_tasks
from metakm.presets import changes_from_preset, preset_config
from metakm.run.folder import RunFolder
from metakm.run.row import ResultRow
from metakm.strategies import available_strategies
from metakm.table.blocks import build_table
from metakm.table.collect import read_runs

SIX_HUNDRED = np.full(600, 0.5) + np.tile([0.125, 0, -0.125], 200)  # the preset's number of tasks
ADAPTED = {"maml": 112724, "anil": 1300, "km": 2204}


def small_config(out, **changes):
    """The config of a run of seconds on glyphs, quiet, in the folder `out`."""
    settings = {
        "ways": 3, "queries": 2, "backbone": "conv4-8-stride", "meta_batch": 2, "iterations": 4, "val_every": 2,
        "val_tasks": 4, "eval_tasks": 6, "meta_lr": 0.01, "device": "cpu", "quiet": True, "out": out,
    }  # fmt: skip
    return preset_config(**{**settings, **changes})


def write_run(
    folder,
    algo="km",
    accuracies=(0.5, 0.75, 0.625, 0.875),
    seed=0,
    dataset="omniglot",
    ways=None,
    shots=1,
    preset="quick",
    row=None,
    **changes,
):
    """A run with these accuracies by task; `changes` are fields of its config, `row` columns that differ.

    A strategy that is not registered has the config of km, as one of a plugin might.
    """
    accuracies = np.array(accuracies)
    known = algo if algo in available_strategies() else "km"
    config = preset_config(preset, known, dataset, ways, shots, seed=seed, eval_tasks=len(accuracies), **changes)
    values = {**config.defaults(), **config.flat()}
    measured = {
        **{f.name: values[f.name] for f in dataclasses.fields(ResultRow) if f.name in values},
        "algo": algo,
        "run_id": config.run_id.replace(f"s-{known}-", f"s-{algo}-"),
        "status": "done",
        "adapted_parameters": ADAPTED.get(algo, 77),
        "total_parameters": 113884,
        "val_accuracy": 0.75,
        "accuracy": float(accuracies.mean()),
        "ci95": interval_over_tasks(accuracies),
        "n_tasks": len(accuracies),
        "train_seconds": 1.5,
        "ms_per_iteration": None,
        "peak_memory_mb": 100.0,
        "device": "cpu",
        "threads": "1",
        "torch_version": "2.15.0",
        "metakm_version": "0.1.0",
        "git_commit": "c0ffee",
        "split_hash": "5p117",
        "episodes_hash": f"episodes-{config.setting}",
        "started_at": f"2026-11-20T12:00:0{seed % 10}+00:00",
        "changes": json.dumps(changes_from_preset(config)),
    }
    run = RunFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    run.write_config({k: v for k, v in config.to_json().items() if "." not in k or algo == known} | {"algo": algo})
    if (row or {}).get("status", "done") == "done":
        run.write_tasks(accuracies)
    run.write_row(ResultRow(**{**measured, **(row or {})}))
    return folder


def table_of(folder, **options):
    return build_table(read_runs(folder), **options)


def numbers(path):
    """All that a run computed, without times."""
    curve = pd.read_csv(path / "curve.csv").drop(columns="seconds")
    return curve.to_csv(), (path / "tasks.csv").read_text(), state(path)


def state(path):
    checkpoint = torch.load(path / "checkpoint.pt", weights_only=True)
    return {k: v.tolist() for k, v in checkpoint["loop"]["model"].items()}

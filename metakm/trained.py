"""Trained runs from their folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from metakm.checkpoint import load_checkpoint
from metakm.config import RunConfig
from metakm.errors import UserError
from metakm.preparation import build_strategy
from metakm.strategies import Strategy
from metakm.strategies.base import InnerLR


class TrainedRun(NamedTuple):
    """What a run learned, and how it was evaluated.

    strategy: the best checkpoint by meta-validation, on the CPU, in evaluation mode.
    inner_lr: the config's number, or the learned rates.
    image_shape: (C, H, W) of the images that it was trained on.
    """

    strategy: Strategy
    config: RunConfig
    inner_lr: InnerLR
    inner_steps: int
    image_shape: tuple[int, int, int]


def load_run(folder: str | Path) -> TrainedRun:
    """Load a run's best model from its folder, `<out>/<setting>/<algo>/seed<k>/`; its data are not needed.

    Nothing from the folder is executed: a plugin that the run was started with must be loaded by `load_plugin` before.

    Raises:
        UserError: files that are missing, damaged or not of the same run, or an unknown strategy.
    """
    from metakm.results import RunFolder  # brings pandas along, which `import metakm` should not

    run = RunFolder(Path(folder))
    config = read_config(run.path)
    if not run.checkpoint.is_file():
        raise UserError(f"Expected a trained run, got {run.path} without {run.checkpoint.name}; train it again")
    state = load_checkpoint(run.checkpoint, config)
    try:
        channels, height, width = map(int, state["image_shape"])
        strategy = build_strategy(config, (channels, height, width))
        model = state["best"]["model"]
        strategy.load_state_dict(model["strategy"])
        rates = list(model["rates"])
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"Expected the parameters of {config.algo} in {run.checkpoint}, got: {error}") from error
    inner_lr: InnerLR = rates or config.inner_lr
    return TrainedRun(strategy.eval(), config, inner_lr, config.test_inner_steps, (channels, height, width))


def read_config(folder: Path) -> RunConfig:
    """The settings of the run in `folder`.

    Raises:
        UserError: no config.json, or one that no run writes.
    """
    path = folder / "config.json"
    try:
        return RunConfig.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"Expected the run's settings in {path}, got {error}") from error

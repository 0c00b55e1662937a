"""Trained runs from their folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from metakm.config import RunConfig
from metakm.errors import UserError
from metakm.io.files import expanded
from metakm.learning.inner_rates import InnerRates
from metakm.run.build import build_strategy
from metakm.run.checkpoint import load_checkpoint
from metakm.run.weights import ImageShape, read_weights
from metakm.strategies import Strategy
from metakm.strategies.base import InnerLR


class TrainedRun(NamedTuple):
    """What a run learned, and how it was evaluated.

    strategy: the model that was tested, on the CPU, in evaluation mode.
    inner_lr: the config's number, or the learned rates.
    image_shape: (C, H, W) of the images that it was trained on.
    """

    strategy: Strategy
    config: RunConfig
    inner_lr: InnerLR
    inner_steps: int
    image_shape: tuple[int, int, int]

    def model_state(self) -> dict[str, Any]:
        """The model as `OuterLoop.load_model_state` takes it."""
        rates = [] if isinstance(self.inner_lr, float) else list(self.inner_lr)
        return {"strategy": self.strategy.state_dict(), "rates": rates}


def load_run(folder: str | Path) -> TrainedRun:
    """Load a run's tested model from its folder, `<out>/<setting>/<algo>/seed<k>/`; its data are not needed.

    It is in checkpoint.pt and, once the run is done, in weights.safetensors: a folder with either will do. Of both,
    which then hold the same model, the latter is read: it travels with the row and is no pickle.

    Nothing from the folder is executed: a plugin that the run was started with must be loaded by `load_plugin` before.

    Raises:
        UserError: files that are missing, damaged or not of the same run, or an unknown strategy.
    """
    from metakm.run.folder import RunFolder  # brings pandas along, which `import metakm` should not

    run = RunFolder(expanded(folder, "the run's folder"))
    config = read_config(run.path)
    path = run.weights if run.weights.is_file() else run.checkpoint
    if not path.is_file():
        raise UserError(f"Expected a trained run, got {run.path} without {run.weights.name} or {path.name}; train it")
    try:
        image_shape, model = read_weights(path, config) if path == run.weights else _from_checkpoint(path, config)
        strategy = build_strategy(config, image_shape)
        _check_values(strategy, model, config)
        strategy.load_state_dict(model["strategy"])
        rates = list(model["rates"])
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError, OverflowError, MemoryError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"Expected the parameters of {config.algo} in {path}, got: {said}") from error
    inner_lr: InnerLR = rates or config.inner_lr
    return TrainedRun(strategy.eval(), config, inner_lr, config.test_inner_steps, image_shape)


def _from_checkpoint(path: Path, config: RunConfig) -> tuple[ImageShape, dict[str, Any]]:
    state = load_checkpoint(path, config)
    channels, height, width = map(int, state["image_shape"])
    return (channels, height, width), state["best"]["model"]


def _check_values(strategy: Strategy, model: dict[str, Any], config: RunConfig) -> None:
    """What `load_state_dict` accepts although no run writes it: values that would be rounded, and the rates."""
    own, rates = strategy.state_dict(), list(InnerRates(strategy, config).rates) if config.shared.learn_inner_lr else []
    if len(model["rates"]) != len(rates):
        raise ValueError(f"{len(model['rates'])} learned inner rates, where {len(rates)} belong")
    pairs = [(name, model["strategy"][name], tensor) for name, tensor in own.items() if name in model["strategy"]]
    pairs += [(f"rate {i}", *pair) for i, pair in enumerate(zip(model["rates"], rates, strict=True))]
    for name, new, like in pairs:
        same_kind = new.is_floating_point() == like.is_floating_point()
        if not (same_kind and torch.promote_types(new.dtype, like.dtype) == like.dtype):
            raise TypeError(f"{name} of {new.dtype}, where the strategy has {like.dtype}")
    for i, (rate, like) in enumerate(zip(model["rates"], rates, strict=True)):
        if rate.shape != like.shape:
            raise ValueError(f"rate {i} of {list(rate.shape)}, where {list(like.shape)} belongs")


def read_config(folder: Path) -> RunConfig:
    """The settings of the run in `folder`.

    Raises:
        UserError: no config.json, or one that no run writes.
    """
    return RunConfig.from_json(read_settings(folder))


def read_settings(folder: Path) -> dict[str, Any]:
    """The values in the config.json of the run in `folder`, unchecked.

    Raises:
        UserError: no config.json, or not an object.
    """
    path = folder / "config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"Expected the run's settings in {path}, got {error}; name a run's own folder") from error
    if not isinstance(settings, dict):
        raise UserError(f"Expected a config to be a JSON object in {path}, got {settings!r:.200}")
    return settings

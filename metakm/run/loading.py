"""Trained runs from their folders."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metakm.config import RunConfig
from metakm.data.registry import DatasetEntry, dataset_entry
from metakm.errors import UserError, one_line
from metakm.io.files import expanded
from metakm.learning.classifier import AdaptedClassifier, Images, Labels
from metakm.learning.learner import Learner
from metakm.models.build import require_backbone
from metakm.models.registry import ImageShape
from metakm.run.build import build_learner
from metakm.run.checkpoint import load_checkpoint
from metakm.run.config_file import read_config_file
from metakm.run.folder import RunFolder
from metakm.run.weights import read_run_weights
from metakm.strategies import Strategy
from metakm.strategies.interfaces import InnerLR
from metakm.strategies.registry import strategy_class


@dataclass(frozen=True, repr=False)
class TrainedRun:
    """A run that has finished, or its best model so far.

    Attributes:
        learner: on the CPU, in evaluation mode.
        image_shape: (C, H, W) of the images that it was trained on.
        folder: where the run keeps its files.
        accuracy: mean over the meta-test tasks, as a fraction; None before the run is done.
        interval: half-width of its 95 % interval over tasks.
        split_hash: of the data that it was trained on; empty before the run is done.
        own_data: the dataset that `train` was given as objects, which `evaluate` tests on; None for one loaded by name.
    """

    learner: Learner
    config: RunConfig
    image_shape: ImageShape
    folder: Path
    accuracy: float | None = None
    interval: float | None = None
    split_hash: str = ""
    own_data: DatasetEntry | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        numbers = "" if self.accuracy is None else f", accuracy={self.accuracy:.4f}"
        numbers += "" if self.interval is None else f", interval={self.interval:.4f}"
        return f"TrainedRun({self.config.algo}, {self.config.setting}, folder={str(self.folder)!r}{numbers})"

    @property
    def strategy(self) -> Strategy:
        """The learner's."""
        return self.learner.strategy

    @property
    def inner_lr(self) -> InnerLR:
        """The config's number, or the learned rates."""
        return self.learner.inner_lr

    @property
    def test_inner_steps(self) -> int:
        """Inner steps at the test."""
        return self.learner.test_inner_steps

    def adapt(self, images: Images, labels: Labels, *, inner_steps: int | None = None) -> AdaptedClassifier:
        """A classifier of the classes in a labelled support set: see `Learner.adapt`."""
        return self.learner.adapt(images, labels, inner_steps=inner_steps)


def load_run(folder: str | Path) -> TrainedRun:
    """Load a run's tested model from its folder, `<out>/<setting>/<algo>/seed<k>/`; its data are not needed.

    It is in checkpoint.pt and, once the run is done, in weights.safetensors: a folder with either will do. Of both,
    which then hold the same model, the latter is read: it travels with the row and is no pickle.

    Nothing from the folder is executed: a plugin that the run was started with must be loaded by `load_plugin` before.

    Raises:
        UserError: files that are missing, damaged or not of the same run, or an unknown strategy.
    """
    run = RunFolder(expanded(folder, "the run's folder"))
    config = read_config(run.path)
    path = run.weights if run.weights.is_file() else run.checkpoint
    if not path.is_file():
        raise UserError(f"Expected a trained run, got {run.path} without {run.weights.name} or {path.name}; train it")
    try:
        read = read_run_weights if path == run.weights else _from_checkpoint
        image_shape, train_classes, model = read(path, config)
        own = dataclasses.replace(config, weights=None)  # the run has its own
        learner = build_learner(own, image_shape, train_classes)
        learner.load_checked(model)
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError, OverflowError, MemoryError) as error:
        said = one_line(error)
        raise UserError(f"Expected the parameters of {config.algo} in {path}, got: {said}") from error
    done = run.read_finished_row() or {}
    tested = (done.get("accuracy"), done.get("ci95"), str(done.get("split_hash") or ""))
    return TrainedRun(learner.eval(), config, image_shape, run.path, *tested)


def _from_checkpoint(path: Path, config: RunConfig) -> tuple[ImageShape, int | None, dict[str, Any]]:
    """As `read_run_weights`."""
    state = load_checkpoint(path, config)
    channels, height, width = map(int, state["image_shape"])
    return (channels, height, width), state.get("train_classes"), state["best"]["model"]


def read_config(folder: Path) -> RunConfig:
    """The settings of the run in `folder`.

    Raises:
        UserError: no config.json, or one that no run writes.
    """
    return RunConfig.from_json(require_config_file(folder))


def require_config_file(folder: Path) -> dict[str, Any]:
    """The values in the config.json of the run in `folder`, unchecked.

    Raises:
        UserError: no config.json, or not an object.
    """
    settings = read_config_file(folder)
    if settings is None:
        raise UserError(f"Expected the run's settings in {folder}/config.json, got no file; name a run's own folder")
    return settings


def require_plugins(settings: dict[str, Any]) -> None:
    """Refuse the settings of a run whose plugins are not loaded.

    Raises:
        UserError: names what is unknown, and the flags that the run was started with.
    """
    plugins = settings.get("plugin") or []
    look_up: dict[str, Callable[[str], object]] = {
        "algo": strategy_class,
        "backbone": require_backbone,
        "dataset": dataset_entry,
    }
    for name in look_up if isinstance(plugins, list) and plugins else ():
        kind, own = "strategy" if name == "algo" else name, str(settings.get(name))
        try:
            look_up[name](own)
        except UserError as error:
            raise UserError(
                f"Expected --plugin for the {kind} {own!r}, got none that has it; the run was started with --plugin "
                f"{' '.join(map(str, plugins))}"
            ) from error

"""Few-shot meta-learning for PyTorch: episodes, adaptation strategies, one batched differentiable inner loop.

Public names are imported on first use (PEP 562), so that a command that needs no torch does not wait for it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metakm.config import RunConfig
    from metakm.data import (
        Episodes,
        EpisodeSampler,
        FewShotDataset,
        available_datasets,
        load_dataset,
        read_images,
        register_dataset,
    )
    from metakm.errors import UserError
    from metakm.learning.classifier import AdaptedClassifier, adapt
    from metakm.learning.evaluation import Evaluation
    from metakm.learning.inner_loop import MetaLoss, evaluate_episodes, meta_loss
    from metakm.learning.learner import Learner
    from metakm.learning.malloc import keep_freed_memory
    from metakm.models import CifarResNet, Conv4
    from metakm.models.conversion import carry_tasks
    from metakm.models.registry import register_backbone
    from metakm.modulation import load_pack, merge, modulate, register_modulator, save_pack
    from metakm.photos.api import fit
    from metakm.photos.classifier import PhotoClassifier, load_classifier
    from metakm.registry import load_plugin
    from metakm.run.callbacks import Callback, EarlyStopping, EndEvent, IterationEvent, ValidationEvent
    from metakm.run.evaluate import evaluate
    from metakm.run.loading import TrainedRun, load_run
    from metakm.run.train import train
    from metakm.strategies import Strategy, available_strategies, make_strategy, register_strategy
    from metakm.table.layouts import register_table_layout

    __version__: str

_modules = {
    "metakm.config": ("RunConfig",),
    "metakm.data": (
        "EpisodeSampler", "Episodes", "FewShotDataset", "available_datasets", "load_dataset", "read_images",
        "register_dataset",
    ),
    "metakm.errors": ("UserError",),
    "metakm.learning.classifier": ("AdaptedClassifier", "adapt"),
    "metakm.learning.evaluation": ("Evaluation",),
    "metakm.learning.inner_loop": ("MetaLoss", "evaluate_episodes", "meta_loss"),
    "metakm.learning.learner": ("Learner",),
    "metakm.learning.malloc": ("keep_freed_memory",),
    "metakm.models": ("CifarResNet", "Conv4"),
    "metakm.models.conversion": ("carry_tasks",),
    "metakm.models.registry": ("register_backbone",),
    "metakm.modulation": ("load_pack", "merge", "modulate", "register_modulator", "save_pack"),
    "metakm.photos.api": ("fit",),
    "metakm.photos.classifier": ("PhotoClassifier", "load_classifier"),
    "metakm.registry": ("load_plugin",),
    "metakm.run.callbacks": ("Callback", "EarlyStopping", "EndEvent", "IterationEvent", "ValidationEvent"),
    "metakm.run.evaluate": ("evaluate",),
    "metakm.run.loading": ("TrainedRun", "load_run"),
    "metakm.run.train": ("train",),
    "metakm.strategies": (
        "Strategy", "available_strategies", "make_strategy", "register_strategy",
    ),
    "metakm.table.layouts": ("register_table_layout",),
}  # fmt: skip
_home = {name: module for module, names in _modules.items() for name in names}

__all__ = [
    "AdaptedClassifier",
    "Callback",
    "CifarResNet",
    "Conv4",
    "EarlyStopping",
    "EndEvent",
    "EpisodeSampler",
    "Episodes",
    "Evaluation",
    "FewShotDataset",
    "IterationEvent",
    "Learner",
    "MetaLoss",
    "PhotoClassifier",
    "RunConfig",
    "Strategy",
    "TrainedRun",
    "UserError",
    "ValidationEvent",
    "adapt",
    "available_datasets",
    "available_strategies",
    "carry_tasks",
    "evaluate",
    "evaluate_episodes",
    "fit",
    "keep_freed_memory",
    "load_classifier",
    "load_dataset",
    "load_pack",
    "load_plugin",
    "load_run",
    "make_strategy",
    "merge",
    "meta_loss",
    "modulate",
    "read_images",
    "register_backbone",
    "register_dataset",
    "register_modulator",
    "register_strategy",
    "register_table_layout",
    "save_pack",
    "train",
]


if not TYPE_CHECKING:  # or mypy would take any name for one of the module's

    def __getattr__(name: str) -> Any:
        """Import a public name where it is first asked for."""
        if name == "__version__":
            from importlib.metadata import version

            value: Any = version("metakm")
        elif name in _home:
            value = getattr(importlib.import_module(_home[name]), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})

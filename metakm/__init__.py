"""Few-shot meta-learning for PyTorch: episodes, adaptation strategies, one batched differentiable inner loop."""

from importlib.metadata import version

from metakm.data import Episodes, EpisodeSampler, FewShotDataset, available_datasets, load_dataset, read_images
from metakm.errors import UserError
from metakm.learning.classifier import AdaptedClassifier, adapt
from metakm.learning.inner_loop import MetaLoss, evaluate_episodes, meta_loss
from metakm.learning.malloc import keep_freed_memory
from metakm.models import CifarResNet, Conv4
from metakm.run.loading import TrainedRun, load_run
from metakm.strategies import Strategy, available_strategies, load_plugin, make_strategy, register_strategy

__version__ = version("metakm")

__all__ = [
    "AdaptedClassifier",
    "CifarResNet",
    "Conv4",
    "EpisodeSampler",
    "Episodes",
    "FewShotDataset",
    "MetaLoss",
    "Strategy",
    "TrainedRun",
    "UserError",
    "adapt",
    "available_datasets",
    "available_strategies",
    "evaluate_episodes",
    "keep_freed_memory",
    "load_dataset",
    "load_plugin",
    "load_run",
    "make_strategy",
    "meta_loss",
    "read_images",
    "register_strategy",
]

"""What a run needs before it starts, made from its config: device, episodes, untrained strategy."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import torch
from torch import nn

from metakm.config import RunConfig
from metakm.data import EpisodeSampler, load_dataset
from metakm.errors import UserError
from metakm.learning.evaluation import EVALUATION_SEED
from metakm.models.build import make_backbone
from metakm.models.registry import OWN
from metakm.options import option_types
from metakm.strategies import Strategy, make_strategy
from metakm.strategies.independence import require_independent_tasks
from metakm.strategies.protonet import Prototypical
from metakm.strategies.registry import strategy_class


def make_sampler(config: RunConfig, split: str) -> EpisodeSampler:
    """Episodes of one split; only those of meta-training depend on the run's seed and on `augment`.

    Raises:
        UserError: data that are missing, or episodes that cannot be drawn from them.
    """
    dataset = load_dataset(config.dataset, split=split, root=config.data_root, image_size=config.image_size)
    if split == "train":
        return EpisodeSampler(dataset, config.ways, config.shots, config.queries, config.seed, config.augment)
    queries = config.test_queries or config.queries
    return EpisodeSampler(dataset, config.ways, config.shots, queries, EVALUATION_SEED)


def with_data_here(config: RunConfig, data_root: Path | None = None) -> RunConfig:
    """The config of a run, maybe of another machine: with `data_root`, else its own if that is a folder here."""
    own = config.data_root if config.data_root is not None and config.data_root.is_dir() else None
    return dataclasses.replace(config, data_root=own if data_root is None else data_root)


def build_strategy(config: RunConfig, image_shape: tuple[int, int, int]) -> Strategy:
    """The untrained strategy of a config: a function of its seed, whatever the global generator's state.

    Raises:
        UserError: a name, backbone or option that does not exist or does not fit the strategy.
    """
    cls = strategy_class(config.algo)
    if cls.own_network and config.backbone != OWN:
        raise UserError(
            f"Expected --backbone {OWN} with {config.algo!r}, which brings a network of its own, got "
            f"{config.backbone!r}; name that"
        )
    keywords = inspect.signature(cls).parameters
    options = {name: getattr(config.options, name) for name in option_types(cls.options) if name in keywords}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        backbone = None if cls.own_network else make_backbone(config.backbone, image_shape, config.bn_mode)
        strategy = make_strategy(config.algo, backbone, config.ways, **options)
        _start_head(strategy, config)
    require_independent_tasks(strategy.train())
    if isinstance(strategy, Prototypical):
        strategy.scaled_distance = config.shared.scaled_distance
    return strategy


def _start_head(strategy: Strategy, config: RunConfig) -> None:
    """Give the head the start that the config asks for."""
    head, options = strategy.head_parameters(), config.shared
    for name in ("first_head_lr", "normal_head", "zero_head"):
        if getattr(options, name) and not head:
            raise UserError(
                f"Expected {type(strategy).__qualname__}.head_prefix to name a head in `adapted` for {name}, got "
                f"{strategy.head_prefix!r}; set it, or register the strategy with options that have no {name}"
            )
    if options.zero_head or options.normal_head:
        for parameter in head.values():
            nn.init.zeros_(parameter)
    if options.normal_head:
        nn.init.normal_(head[f"{strategy.head_prefix}weight"])


def resolve_device(name: str) -> torch.device:
    """The device called `name`; `auto` is the first GPU, or the CPU.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("not a device that metakm is tested on")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"Expected --device to be auto, cpu, or cuda of this machine, got {name!r}") from error
    return device

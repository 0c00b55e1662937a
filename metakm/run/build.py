"""Builds what a run needs from its config: episodes and an untrained learner."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from metakm.config import RunConfig
from metakm.config.dataset_names import dataset_names
from metakm.data import AlternatingSampler, EpisodeSampler, FewShotDataset, load_dataset
from metakm.data.channels import in_grey
from metakm.data.episodes import Episodes, SplitSampler
from metakm.data.overlap import check_unseen
from metakm.data.varying_sampler import VaryingSampler
from metakm.errors import UserError, describe_error
from metakm.learning.evaluation import EVALUATION_SEED
from metakm.learning.learner import Learner
from metakm.learning.memory import is_out_of_memory
from metakm.learning.randomness import own_randomness, seeded
from metakm.models.registry import OWN, ImageShape
from metakm.options import to_flat
from metakm.registry import full_name
from metakm.strategies.independence import require_independent_tasks
from metakm.strategies.registry import strategy_class, takes_train_classes


def load_splits(config: RunConfig, split: str) -> list[FewShotDataset]:
    """The split of a config's data, one for each of its datasets.

    Raises:
        UserError: see `load_dataset`.
    """
    return [
        load_dataset(
            name,
            split=split,
            root=config.data_root,
            image_size=config.image_size,
            class_split=config.split,
            split_seed=config.split_seed,
        )
        for name in dataset_names(config.dataset)
    ]


def make_sampler(
    config: RunConfig, split: str, grey_channels: int | None = None
) -> EpisodeSampler | AlternatingSampler:
    """Episodes of one split; only those of meta-training depend on the run's seed and on `augment`.

    Several datasets take turns, episode by episode.

    Args:
        grey_channels: make the images grey, of so many equal channels.

    Raises:
        UserError: missing data, or data that such episodes cannot be drawn from.
    """
    parts = load_splits(config, split)
    grey = parts if grey_channels is None else [in_grey(part, grey_channels) for part in parts]
    if len(parts) > 1 and config.varies and config.meta_batch > 1:
        raise UserError(
            f"Expected --meta-batch 1 with ranges of ways or shots and several datasets, got {config.meta_batch}"
        )
    samplers = [sampler_of(part, config, split) for part in grey]
    return samplers[0] if len(samplers) == 1 else AlternatingSampler(samplers)


def sampler_of(dataset: FewShotDataset, config: RunConfig, split: str) -> EpisodeSampler:
    """As `make_sampler`, of a dataset that is loaded."""
    if split == "train" and config.varies:
        ways, shots = config.train_range("ways"), config.train_range("shots")
        return VaryingSampler(dataset, ways, shots, config.queries, config.seed, config.augment)
    if split == "train":
        return EpisodeSampler(dataset, config.ways, config.shots, config.queries, config.seed, config.augment)
    return EpisodeSampler(dataset, config.ways, config.shots, config.queries_of(split), EVALUATION_SEED)


def with_data_here(config: RunConfig, data_root: Path | None = None) -> RunConfig:
    """The config with `data_root`, or with its own data root if that folder exists on this machine."""
    own = config.data_root if config.data_root is not None and config.data_root.is_dir() else None
    return dataclasses.replace(config, data_root=own if data_root is None else data_root)


def build_learner(config: RunConfig, image_shape: ImageShape, train_classes: int | None = None) -> Learner:
    """The learner of a config before meta-training: a function of its seed, whatever the global generator's state.

    Args:
        train_classes: `n_episode_classes` of the training split; needed to train some strategies, such as baseline.

    Raises:
        UserError: a name, backbone or option that does not exist or does not fit the strategy.
    """
    cls = strategy_class(config.algo)
    if cls.own_network and config.backbone != OWN:
        raise UserError(
            f"Expected --backbone {OWN} with {config.algo!r}, which brings a network of its own, got "
            f"{config.backbone!r}; name that"
        )
    with seeded(config.seed):
        learner = Learner(
            config.algo,
            backbone=None if cls.own_network else config.backbone,
            ways=config.ways,
            inner_lr=config.inner_lr,
            inner_steps=config.inner_steps,
            test_inner_steps=config.test_inner_steps,
            image_shape=image_shape,
            bn_mode=config.bn_mode,
            weights=config.weights,
            train=config.train,
            train_classes=train_classes,
            **to_flat(config.algo, config.options),
        )
    require_independent_tasks(learner.strategy.train())
    return learner


def require_fitting(config: RunConfig, samplers: Mapping[str, SplitSampler]) -> None:
    """Refuse splits that a run cannot be trained and tested on.

    Raises:
        UserError: images of other shapes, a class in two splits, or unnumbered classes for a strategy that classifies
            them.
    """
    shapes = {split: list(sampler.dataset.image_shape) for split, sampler in samplers.items()}
    if len({*map(tuple, shapes.values())}) > 1:
        said = ", ".join(f"{shape} in {split}" for split, shape in shapes.items())
        raise UserError(f"Expected images of one shape in all splits of {config.dataset}, got {said}; resize them")
    check_unseen({split: sampler.dataset for split, sampler in samplers.items()})
    unnumbered = "train" in samplers and samplers["train"].dataset.n_episode_classes is None
    if unnumbered and config.iterations and takes_train_classes(strategy_class(config.algo)):
        raise UserError(
            f"Expected a FewShotDataset to train {config.algo!r}, which learns to classify all training classes, got a "
            "sampler of episodes, which does not number them; see FewShotDataset.from_dataset"
        )


def try_losses(learner: Learner, episodes: Episodes, config: RunConfig) -> None:
    """Compute the outer loss and the metric of a copy of the learner, to fail now and not after the first files.

    metakm's own strategies, which are tested, are not tried.

    Raises:
        UserError: they raise, or return something else than `Strategy` says.
    """
    kind, steps = type(learner.strategy), config.inner_steps
    if kind.__module__.startswith("metakm."):
        return
    weights = [1 / steps] * steps if config.shared.multi_step_loss and steps > 1 else None
    like = next(learner.parameters())
    try:
        with own_randomness(config.seed, 0, like.device):
            copy.deepcopy(learner).train().meta_loss(episodes.to(like.device, like.dtype), weights, 0.0)
    except UserError:
        raise
    except Exception as error:  # a plugin's code may raise anything
        if not is_out_of_memory(error):  # which the training says better
            raise UserError(f"Expected {full_name(kind)} to learn from a task, got {describe_error(error)}") from error

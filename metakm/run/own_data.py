"""Data that a run gets as objects: three datasets, or three samplers of episodes."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metakm.config import RunConfig
from metakm.data import Episodes, EpisodeSource, FewShotDataset, load_dataset
from metakm.data.episodes import SplitSampler
from metakm.data.registry import DatasetEntry, dataset_entry, datasets
from metakm.data.splits import SPLITS
from metakm.errors import UserError
from metakm.models.registry import ImageShape
from metakm.run.build import sampler_of

SplitData = FewShotDataset | EpisodeSource
OwnData = Mapping[str, SplitData] | Sequence[SplitData]
"""Training, validation and test data, in this order or by the names train, val and test."""


def with_own_data(config: RunConfig, data: str | OwnData | None) -> tuple[RunConfig, dict[str, SplitSampler] | None]:
    """The config with the name of `data`, and the samplers of its splits; None for data that are loaded by name.

    Datasets are registered under their name for this process, so that `metakm.evaluate` finds them.

    Raises:
        UserError: not three splits of one name, or samplers whose episodes are not those of the config.
    """
    if data is None or isinstance(data, str):
        return (config if data is None else dataclasses.replace(config, dataset=data)), None
    splits = _by_split(data)
    names = {_name(part) for part in splits.values()}
    if len(names) > 1:
        raise UserError(f"Expected splits of one dataset, got those of {', '.join(sorted(names))}; give them one name")
    (name,) = names
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"Expected a dataset's name of letters, digits, '.', '_' and '-', got {name!r}; rename it")
    _hold(name, splits, dataset_entry(config.dataset))
    named = dataclasses.replace(config, dataset=name)
    samplers = {split: _sampler(named, split, part) for split, part in splits.items()}
    return named, samplers


def _by_split(data: Any) -> dict[str, SplitData]:
    parts = dict(data) if isinstance(data, Mapping) else dict(zip(SPLITS, data, strict=True)) if _is_three(data) else {}
    if set(parts) != set(SPLITS):
        got = sorted(map(str, parts)) if isinstance(data, Mapping) else type(data).__name__
        raise UserError(f"Expected a dataset's name, or its splits {', '.join(SPLITS)}, got {got}; pass all three")
    for split, part in parts.items():
        if not (isinstance(part, FewShotDataset) or callable(getattr(part, "batch", None))):
            raise UserError(
                f"Expected the {split} split to be a FewShotDataset or to have batch(index, tasks), got "
                f"{type(part).__name__}; see FewShotDataset.from_dataset and metakm.interop"
            )
    return {split: parts[split] for split in SPLITS}


def _is_three(data: Any) -> bool:
    return isinstance(data, Sequence) and len(data) == len(SPLITS)


def _name(part: SplitData) -> str:
    return str(getattr(part, "name", "custom"))


@dataclass(frozen=True, eq=False)
class _Held:
    """Loads the splits that it holds."""

    name: str
    splits: Mapping[str, SplitData]

    def __call__(self, split: str, _roots: object) -> FewShotDataset:
        part = self.splits[split]
        if not isinstance(part, FewShotDataset):
            raise UserError(
                f"Expected a dataset for {self.name!r}, got a sampler of episodes, which has none; test the run with "
                "run.learner.evaluate(sampler)"
            )
        return dataclasses.replace(part, split=split)


def _hold(name: str, splits: Mapping[str, SplitData], like: DatasetEntry) -> None:
    """Register the splits, in place of earlier ones of that name; a dataset that is loaded by its name stays.

    Raises:
        UserError: other data of the name of such a dataset, as far as it is on this machine.
    """
    if name not in datasets.names() or isinstance(datasets.get(name).load, _Held):
        datasets.replace(name, DatasetEntry(_Held(name, splits), name, like.family, like.ways))
        return
    for split, part in splits.items():
        try:
            known = load_dataset(name, split=split)
        except UserError:  # it is elsewhere
            return
        if isinstance(part, FewShotDataset) and part.split_hash != known.split_hash:
            raise UserError(
                f"Expected a name of your own for data of your own, got {name!r}, whose {split} split is another; the "
                "run would later be tested on that; rename it"
            )


def _sampler(config: RunConfig, split: str, part: SplitData) -> SplitSampler:
    if isinstance(part, FewShotDataset):
        return sampler_of(dataclasses.replace(part, split=split), config, split)
    if config.varies:
        raise UserError("Expected a FewShotDataset for ranges of ways or shots, got a sampler; leave the ranges out")
    if config.augment:
        raise UserError("Expected a FewShotDataset to augment, got a sampler of episodes; leave augment out")
    return DrawnEpisodes(part, config.ways, config.shots, config.queries_of(split), split)


@dataclass(frozen=True)
class DrawnSplit:
    """What a run must know of the data behind a sampler of episodes.

    split_hash: of the pixels of episode 0; data that give the same first episode count as the same.
    n_episode_classes: None, as the sampler does not number its classes.
    """

    image_shape: ImageShape
    split_hash: str
    n_episode_classes: None = None


class DrawnEpisodes:
    """A user's episode sampler, as a run's sampler of one split.

    Raises:
        UserError: its episodes have other ways, shots or queries than the run, or no images `[T, n, C, H, W]`.
    """

    def __init__(self, source: EpisodeSource, ways: int, shots: int, queries: int, split: str) -> None:
        self.source = source
        self._hashes: dict[tuple[int, int], str] = {}
        first = source.batch(index=0, tasks=1)
        if first.support_images.dim() != 5:
            raise UserError(f"Expected images [T, n, C, H, W], got {list(first.support_images.shape)} for {split}")
        for part, each, labels in (
            ("shots", shots, first.support_labels[0]),
            ("queries", queries, first.query_labels[0]),
        ):
            if labels.is_floating_point():
                raise UserError(
                    f"Expected class numbers as labels of {split} episodes, got targets of floating point; train a "
                    "regression by a Learner in a loop of your own, as examples/06_sinusoid.py does"
                )
            if labels.tolist() != [label for label in range(ways) for _ in range(each)]:
                raise UserError(
                    f"Expected {split} episodes of {ways} ways and {each} {part}, class after class, got the labels "
                    f"{labels.tolist()}; set ways, shots, queries and test_queries of the config as in the sampler"
                )
        channels, height, width = first.support_images.shape[2:]
        self.dataset = DrawnSplit((channels, height, width), self.hash(index=0, tasks=1))

    def batch(self, index: int, tasks: int) -> Episodes:
        """See `EpisodeSource`."""
        return self.source.batch(index=index, tasks=tasks)

    def hash(self, index: int, tasks: int) -> str:
        """Identify these episodes by 16 hex digits over images and labels; draws them, once for equal arguments."""
        if (index, tasks) not in self._hashes:
            digest = hashlib.sha256()
            for number in range(index, index + tasks):
                drawn = self.source.batch(index=number, tasks=1)
                for tensor in (drawn.support_images, drawn.support_labels, drawn.query_images, drawn.query_labels):
                    digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
            self._hashes[index, tasks] = digest.hexdigest()[:16]
        return self._hashes[index, tasks]

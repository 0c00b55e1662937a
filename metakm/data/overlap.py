"""A check that no class of a run's datasets is in two splits, from what was loaded."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from metakm.config.dataset_names import dataset_names
from metakm.data.alternating import AlternatingDatasets
from metakm.data.dataset import FewShotDataset
from metakm.errors import UserError

_OF_IMAGENET = frozenset({"mini-imagenet", "tiered-imagenet", "tiny-imagenet"})
"""They split the same classes in their own ways, and have other names or pixels for them."""


def datasets_of_imagenet(dataset: str) -> list[str]:
    """Those of a run's datasets whose classes are ImageNet's, which ImageNet weights were trained on."""
    return [name for name in dataset_names(dataset) if name in _OF_IMAGENET]


def check_unseen(splits: Mapping[str, object]) -> None:
    """Check that test classes are unseen, for datasets that do not do so themselves, such as those of plugins.

    Of several datasets each split of one is checked against the other splits of all. Names alone do not tell, as each
    split may number its classes from 0: a class is in two splits if its name and its first image are.

    Args:
        splits: each a `FewShotDataset` or several that alternate; what is neither has no classes to compare.

    Raises:
        UserError: names the first such class; or two datasets whose classes are both ImageNet's, which split them in
            their own ways.
    """
    for one, other in itertools.combinations(splits, 2):
        for first, second in itertools.product(_datasets(splits[one]), _datasets(splits[other])):
            if first.name != second.name and {first.name, second.name} <= _OF_IMAGENET:
                raise UserError(
                    f"Expected unseen classes, got {one} of {first.name} and {other} of {second.name}, which divide "
                    "ImageNet's classes differently, so that one's test classes may be the other's training classes; "
                    "use one of them"
                )
            if (name := _common_class(first, second)) is not None:
                raise UserError(
                    f"Expected every class in one split, got {name!r} with the same images in {one} of {first.name} "
                    f"and {other} of {second.name}; move it to one of them, because test classes must be unseen"
                )


def _datasets(split: object) -> tuple[FewShotDataset, ...]:
    if isinstance(split, AlternatingDatasets):
        return split.datasets
    return (split,) if isinstance(split, FewShotDataset) else ()


def _common_class(first: FewShotDataset, second: FewShotDataset) -> str | None:
    """The first class of both."""
    places = {name: place for place, name in enumerate(second.class_names)}
    for place, name in enumerate(first.class_names):
        if name in places and np.array_equal(
            first.images[first.offsets[place]], second.images[second.offsets[places[name]]]
        ):
            return name
    return None

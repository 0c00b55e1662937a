"""A check that no class of a dataset is in two splits, from what was loaded."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from metakm.data.dataset import FewShotDataset
from metakm.errors import UserError


def check_unseen(splits: Mapping[str, FewShotDataset]) -> None:
    """Check that test classes are unseen, for datasets that do not do so themselves, such as those of plugins.

    Names alone do not tell, as each split may number its classes from 0: a class is in two splits if its name and its
    first image are.

    Raises:
        UserError: names the first such class.
    """
    for (one, first), (other, second) in itertools.combinations(splits.items(), 2):
        places = {name: place for place, name in enumerate(second.class_names)}
        for place, name in enumerate(first.class_names):
            if name in places and np.array_equal(
                first.images[first.offsets[place]], second.images[second.offsets[places[name]]]
            ):
                raise UserError(
                    f"Expected every class in one split, got {name!r} with the same images in {one} and {other} of "
                    f"{first.name}; move it to one of them, because test classes must be unseen"
                )

"""The three splits of a dataset, and a hash of their content."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence

from metakm.config.ranges import read_class_split
from metakm.errors import UserError

SPLITS = ("train", "val", "test")

Classes = Sequence[tuple[str, int]]
"""The classes of one split, in the dataset's order: name and number of images."""


def split_hash(classes: Mapping[str, Classes]) -> str:
    """Hash the class names and image counts of all splits: 16 hex digits, the same for each split of a dataset."""
    listed = {split: [[name, int(count)] for name, count in classes[split]] for split in sorted(classes)}
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()[:16]


def divide(names: Sequence[str], sizes: str, seed: int, where: object) -> dict[str, list[str]]:
    """Divide class names at random: a function of the names and the seed alone. Each split is sorted.

    Args:
        sizes: classes of each split, such as 64/16/20.
        where: for messages.

    Raises:
        UserError: sizes that are not three numbers, or not those of all classes.
    """
    counts = read_class_split(sizes)
    if sum(counts) != len(names):
        raise UserError(
            f"Expected --split to add up to the {len(names)} classes of {where}, got {sizes}, {sum(counts)} in all; "
            "change the numbers"
        )
    order = sorted(names, key=lambda name: hashlib.sha256(json.dumps(["metakm split 1", seed, name]).encode()).digest())
    ends = [0, *itertools.accumulate(counts)]
    return {split: sorted(order[a:b]) for split, a, b in zip(SPLITS, ends, ends[1:], strict=False)}


def check_disjoint(classes: Mapping[str, Iterable[str]], where: object, remedy: str) -> None:
    """Check that no class is in two splits: meta-test classes must be unseen.

    Raises:
        UserError: names the first such class, with `where` and what to do.
    """
    home: dict[str, str] = {}
    for split, names in classes.items():
        for name in names:
            if home.setdefault(name, split) != split:
                raise UserError(
                    f"Expected every class in one split, got {name!r} in {home[name]} and {split} of {where}; "
                    f"{remedy}, because test classes must be unseen"
                )

"""The three splits of a dataset, and a hash of their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

from metakm.errors import UserError

SPLITS = ("train", "val", "test")

Classes = Sequence[tuple[str, int]]
"""The classes of one split, in the dataset's order: name and number of images."""


def split_hash(classes: Mapping[str, Classes]) -> str:
    """Hash the class names and image counts of all splits: 16 hex digits, the same for each split of a dataset."""
    listed = {split: [[name, int(count)] for name, count in classes[split]] for split in sorted(classes)}
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()[:16]


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

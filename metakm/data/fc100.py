"""FC100: the 100 classes of CIFAR-100, 600 images each, 32x32, split 60 / 20 / 20 by superclass.

Oreshkin, Rodriguez, Lacoste, "TADAM: Task dependent adaptive metric for improved few-shot learning", NeurIPS 2018: 12,
4 and 4 of the 20 superclasses, so that test classes are less like training classes than those of CIFAR-FS. Read from
CIFAR-100's official files, see `cifar100.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metakm.data.cifar100 import SIDE, load_cifar100
from metakm.data.dataset import FewShotDataset
from metakm.data.registry import register_dataset

VALIDATION = frozenset(
    {"large_carnivores", "large_omnivores_and_herbivores", "non-insect_invertebrates", "small_mammals"}
)
TEST = frozenset({"aquatic_mammals", "insects", "medium_mammals", "people"})
"""Superclasses of the published split; the others are for training."""


@register_dataset("fc100", title="FC100", family="photographs", ways=5, resized=True)
def load_fc100(split: str, roots: Sequence[Path], side: int = SIDE) -> FewShotDataset:
    """Load a split: see `load_cifar100`."""
    return load_cifar100("fc100", split, roots, side, split_of)


def split_of(name: str, superclass: str) -> str:
    """The split of a class."""
    del name
    return "test" if superclass in TEST else "val" if superclass in VALIDATION else "train"

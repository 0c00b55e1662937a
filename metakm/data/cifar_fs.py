"""CIFAR-FS: the 100 classes of CIFAR-100, 600 images each, 32x32, split 64 / 16 / 20 at random.

Bertinetto, Henriques, Torr, Vedaldi, "Meta-learning with differentiable closed-form solvers", ICLR 2019; the split is
theirs, by class names. Read from CIFAR-100's official files, see `cifar100.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metakm.data.cifar100 import SIDE, load_cifar100
from metakm.data.dataset import FewShotDataset
from metakm.data.registry import register_dataset

VALIDATION = frozenset({
    "beaver", "beetle", "butterfly", "camel", "cattle", "crab", "crocodile", "flatfish", "lamp", "maple_tree",
    "motorcycle", "otter", "sea", "shark", "television", "tractor",
})  # fmt: skip
TEST = frozenset({
    "baby", "bed", "bicycle", "chimpanzee", "fox", "leopard", "man", "pickup_truck", "plain", "poppy", "rocket",
    "rose", "snail", "sweet_pepper", "table", "telephone", "wardrobe", "whale", "woman", "worm",
})  # fmt: skip
"""Classes of the published split; the others are for training."""


@register_dataset("cifar-fs", title="CIFAR-FS", family="photographs", ways=5, resized=True)
def load_cifar_fs(split: str, roots: Sequence[Path], side: int = SIDE) -> FewShotDataset:
    """Load a split: see `load_cifar100`."""
    return load_cifar100("cifar-fs", split, roots, side, split_of)


def split_of(name: str, superclass: str) -> str:
    """The split of a class."""
    del superclass
    return "test" if name in TEST else "val" if name in VALIDATION else "train"

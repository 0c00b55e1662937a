"""Few-shot settings, the columns of the table."""

from __future__ import annotations

from typing import NamedTuple

TITLES = {  # as in `register_dataset`, which needs torch
    "cifar-fs": "CIFAR-FS",
    "cub": "CUB-200-2011",
    "fc100": "FC100",
    "flowers": "Flowers-102",
    "grocery-store": "Grocery Store",
    "mini-imagenet": "mini-ImageNet",
    "omniglot": "Omniglot",
    "tiered-imagenet": "tieredImageNet",
    "tiny-imagenet": "tiny-ImageNet",
}


class Setting(NamedTuple):
    """A dataset with ways and shots."""

    dataset: str
    ways: int
    shots: int

    @property
    def title(self) -> str:
        """As the paper writes it, such as `Omniglot 20-way 1-shot`."""
        return f"{TITLES.get(self.dataset, self.dataset)} {self.ways}-way {self.shots}-shot"


# The columns of the paper's Table III, in its order.
TABLE3 = (
    Setting("omniglot", 20, 1),
    Setting("omniglot", 20, 5),
    Setting("mini-imagenet", 5, 1),
    Setting("mini-imagenet", 5, 5),
)

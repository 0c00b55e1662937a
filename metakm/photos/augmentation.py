"""Random views of photographs, the same for the same seed."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

from metakm.learning.randomness import seeded


def random_views(photos: Tensor, seed: int) -> Tensor:
    """A view of each photo: cropped to between half and all of it, mirrored or not, in slightly other light.

    Args:
        photos: uint8 `[n, 3, S, S]`; the views are alike.
    """
    side = photos.shape[-1]
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(side, scale=(0.5, 1.0), ratio=(0.8, 1.25), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
        ]
    )
    with seeded(seed):
        return torch.stack([transform(photo) for photo in photos])

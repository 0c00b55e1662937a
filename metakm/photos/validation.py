"""Splits photos into those a fit learns from and those held out."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from metakm.errors import UserError

ValidationChoice = Literal["auto", "folds", "part", "none"]
MANY = 400
"""From this many photos on, holding out one part is enough."""
PART = 0.2


class HeldOutSplit(NamedTuple):
    """Numbers of photos to train on, and of those to be classified by what was trained."""

    train: list[int]
    held_out: list[int]


def plan_splits(labels: Tensor, validation: ValidationChoice, folds: int, seed: int) -> list[HeldOutSplit]:
    """Several folds, each photo held out once; one part; or nothing, where no class has a photo to spare.

    The folds are drawn class by class. A class's only photo is always trained on. `auto` is a part of a fifth for
    `MANY` photos or more, folds below.

    Raises:
        UserError: folds or a part asked for, and one photo per class.
    """
    counts = torch.bincount(labels)
    spare = bool((counts > 1).any())
    if validation == "auto":
        validation = ("part" if len(labels) >= MANY else "folds") if spare else "none"
    if validation == "none":
        return []
    if not spare:
        raise UserError(f"Expected more than one photo of some class for --validation {validation}, got one of each")
    parts = min(folds, int(counts.max())) if validation == "folds" else round(1 / PART)
    places = _places(labels, parts, seed)
    splits = [
        HeldOutSplit((places != part).nonzero().flatten().tolist(), (places == part).nonzero().flatten().tolist())
        for part in range(parts)
    ]
    return splits if validation == "folds" else splits[:1]


def _places(labels: Tensor, parts: int, seed: int) -> Tensor:
    """The part of each photo, `[n]`; -1 for one that is never held out.

    Each class, and all together, are spread evenly: parts differ by one photo at most.
    """
    generator = torch.Generator().manual_seed(seed)
    places, placed = torch.full_like(labels, -1), 0
    for label in range(int(labels.max()) + 1):
        own = (labels == label).nonzero().flatten()
        if len(own) > 1:
            order = own[torch.randperm(len(own), generator=generator)]
            places[order] = (placed + torch.arange(len(own))) % parts
            placed += len(own)
    return places

"""Whether a network can be fitted to photos of a size, found out before any photo is read."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from metakm.errors import UserError
from metakm.learning.randomness import seeded
from metakm.models.pretrained import Pretrained
from metakm.registry import describe_error


@torch.no_grad()
def try_network(base: Pretrained, size: int) -> None:
    """Give a copy of the network two black images, in evaluation and in training.

    Raises:
        UserError: it fails, or does not return logits `[2, N]`.
    """
    images = torch.zeros(2, 3, size, size, device=next(base.network.parameters()).device)
    trial = copy.deepcopy(base.network)  # training changes running statistics
    for training in (False, True):
        try:
            with seeded(0):
                logits = trial.train(training)(images)
        except Exception as error:  # the network's own code
            raise UserError(
                f"Expected {base.name} to take images of {size}x{size} pixels, got {describe_error(error)}; choose "
                "another size (--size), or another base"
            ) from error
        if not (isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == len(images)):
            got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            mode = "training" if training else "evaluation"
            raise UserError(
                f"Expected logits [2, N] of 2 images, got {got} in {mode} from {base.name}; choose another base"
            )

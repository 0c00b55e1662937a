"""Whether a network can be fitted to photos of a size, found out before any photo is read."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from metakm.errors import UserError, describe_error
from metakm.learning.randomness import seeded
from metakm.models.pretrained import Pretrained, replace_classifier

CLASSES = 5
"""Of the trial; few networks have as many features or classes."""


@torch.no_grad()
def try_network(base: Pretrained) -> None:
    """Give a copy of the network two black images, in evaluation and in training.

    Raises:
        UserError: it fails, does not return logits `[2, N]`, or does not make them by its classifier.
    """
    size = base.preprocessing.size
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
    _try_classifier(base, trial.eval(), images)


def _try_classifier(base: Pretrained, trial: nn.Module, images: Tensor) -> None:
    """Put a classifier of another number of classes into `trial`: it must be what makes the logits, once."""
    replace_classifier(trial, base.classifier, CLASSES)
    layer, given = trial.get_submodule(base.classifier), list[int]()
    layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].dim()))
    try:
        got = f"logits {list(trial(images).shape)}"
    except Exception as error:  # the network's own code
        got = describe_error(error)
    dimensions = 2 if isinstance(layer, nn.Linear) else 4
    if given == [dimensions] and got == f"logits [{len(images)}, {CLASSES}]":
        return
    if given != [dimensions]:
        got += f" and {len(given)} calls of it" + "".join(f" with {d} dimensions" for d in given[:1])
    raise UserError(
        f"Expected {base.name} to get its logits from one call of its last linear layer, {base.classifier}; with "
        f"{CLASSES} classes in that, got {got}; choose another base"
    )

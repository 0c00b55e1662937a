"""Backbones that are other people's networks, by name: `timm:NAME`, `torchvision:NAME`, `file.py:Class`.

The first two lose their classifier, and take images in [0, 1] normalised as their library's weights expect; grey images
fill three channels. A class of a file is taken as it is: its forward returns features. It is built without arguments
and may have `mean` and `std` of the images, one number a channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metakm.errors import UserError
from metakm.models.conversion import carries_tasks, carry_tasks
from metakm.models.layers import BatchNorm2d
from metakm.models.modes import BatchNormMode
from metakm.models.network_file import build_from_file
from metakm.models.pretrained import PRETRAINED, classifier_name, is_of_library, network_of_library
from metakm.models.registry import ImageShape
from metakm.models.weight_file import read_weights, take_weights


class Normalised(nn.Module):
    """A network for three channels, and what comes before it; `[n, C, H, W]` in [0, 1], C 1 or 3, to features."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        for name in ("carries_tasks", "out_features"):  # of a network that takes tasks itself
            if hasattr(network, name):
                setattr(self, name, getattr(network, name))
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        mean, std = self.mean.to(images.dtype), self.std.to(images.dtype)
        features: Tensor = self.network((images - mean) / std)  # one channel becomes three
        return features


def is_named_network(name: str) -> bool:
    """Whether a backbone's name is that of another library's network, or of a class in a file."""
    return is_of_library(name) or name.rpartition(":")[0].endswith(".py")


def named_network(name: str, image_shape: ImageShape, bn_mode: BatchNormMode, weights: str | None) -> nn.Module:
    """The backbone called `name`; with `weights`, a file or "pretrained", it starts from these.

    Raises:
        UserError: an unknown name, a package that is not installed, a class that cannot be built, weights that cannot
            be had or do not fit, or a network that `carry_tasks` refuses.
    """
    kind, _, own = name.rpartition(":")
    if kind.endswith(".py"):
        network = build_from_file(Path(kind), own, "--backbone")
        load_backbone_weights(network, name, weights)
        if carries_tasks(network):
            return _with_own_normalisation(carry_tasks(_in_bn_mode(network, bn_mode), image_shape), name)
        return carry_tasks(_with_own_normalisation(network, name), image_shape, bn_mode)
    network, preprocessing = network_of_library(name, PRETRAINED if weights == PRETRAINED else None)
    drop_classifier(network, name)
    if weights != PRETRAINED:
        load_backbone_weights(network, name, weights)
    if image_shape[0] not in (1, 3):
        raise UserError(f"Expected images of 1 or 3 channels for {name}, got {image_shape[0]}; choose another backbone")
    return carry_tasks(Normalised(network, preprocessing.mean, preprocessing.std), image_shape, bn_mode)


def load_backbone_weights(network: nn.Module, name: str, weights: str | None) -> None:
    """Load a file of weights; tensors of a classifier that `network` lacks are left out.

    Raises:
        UserError: weights "pretrained" for a network that has none, or a file that does not fit.
    """
    if weights is None:
        return
    if weights == PRETRAINED:
        raise UserError(f"Expected a file for --weights, got {PRETRAINED}: {name} has no published weights")
    dropped = getattr(network, "_dropped_classifier", None)
    found = {k: v for k, v in read_weights(weights, network).items() if not _within(k, dropped)}
    take_weights(network, found, weights)


def drop_classifier(network: nn.Module, name: str) -> None:
    """Put nothing in the classifier's place, and remember where it was."""
    classifier = classifier_name(network, name)
    network._dropped_classifier = classifier  # type: ignore[assignment]
    parent, _, last = classifier.rpartition(".")
    setattr(network.get_submodule(parent), last, nn.Identity())


def _within(name: str, module: str | None) -> bool:
    return module is not None and name.startswith(f"{module}.")


def _with_own_normalisation(network: nn.Module, name: str) -> nn.Module:
    """The network of a file, behind the normalisation that its class may name."""
    mean, std = getattr(network, "mean", None), getattr(network, "std", None)
    if mean is None and std is None:
        return network
    if not (isinstance(mean, list | tuple) and isinstance(std, list | tuple)):
        got = f"{type(mean).__name__} and {type(std).__name__}"
        raise UserError(f"Expected mean and std of {name} to be lists of numbers, got {got}; set or rename both")
    return Normalised(network, mean, std)


def _in_bn_mode(network: nn.Module, bn_mode: BatchNormMode) -> nn.Module:
    """A network that carries tasks, whose batch-norm layers follow `bn_mode`."""
    for module in network.modules():
        if isinstance(module, BatchNorm2d):
            layer: Any = module
            layer.mode = bn_mode
    return network

"""Backbones by name, for `--backbone`."""

from __future__ import annotations

import re

from torch import nn

from metakm.errors import UserError
from metakm.models.conv4 import Conv4, Downsample
from metakm.models.modes import BatchNormMode
from metakm.models.resnet import CifarResNet

OWN = "own"
"""In place of a backbone's name: the strategy brings a network of its own."""
NAMES = "conv4-<filters>-stride, conv4-<filters>-pool, resnet<depth>"


def make_backbone(name: str, image_shape: tuple[int, int, int], bn_mode: BatchNormMode = "transductive") -> nn.Module:
    """Build the backbone called `name` for images of `image_shape` (C, H, W).

    Raises:
        UserError: a name that is none of `conv4-64-stride`, `conv4-32-pool`, `resnet32` and their like, or a
            backbone that such images do not fit.
    """
    channels, height, width = image_shape
    if match := re.fullmatch(r"conv4-([1-9]\d{0,3})-(stride|pool)", name):
        if height != width:
            raise UserError(f"Expected square images for {name}, got {height}x{width}; resize them")
        downsample: Downsample = "stride" if match[2] == "stride" else "pool"
        return Conv4(channels, int(match[1]), downsample, image_size=height, bn_mode=bn_mode)
    if match := re.fullmatch(r"resnet([1-9]\d{0,3})", name):
        return CifarResNet(int(match[1]), channels, bn_mode)
    raise UserError(f"Expected backbone to be one of {NAMES}, got {name!r}; for example conv4-64-stride")

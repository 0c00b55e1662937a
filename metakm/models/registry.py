"""Backbones by name: built in, from the entry-point group `metakm.backbones`, or from a plugin file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from metakm.registry import Registry

ImageShape = tuple[int, int, int]
"""(C, H, W)."""

OWN = "own"
"""Used as the backbone's name if the strategy has a network of its own."""

Builder = Callable[..., nn.Module]
_B = TypeVar("_B", bound=Builder)

backbones: Registry[Builder] = Registry("backbone", "metakm.backbones")


def register_backbone(name: str) -> Callable[[_B], _B]:
    """Function decorator: make a backbone known under `name`, for `--backbone name`.

    The function is called as `build(image_shape, bn_mode)` with (C, H, W) and the mode of its batch-norm layers, and
    returns a module that takes images `[T, n, C, H, W]` to features `[T, n, out_features]`, made of the layers of
    `metakm.models`; or a plain network, `[n, C, H, W]` to `[n, F]`, which then is converted by `metakm.carry_tasks`.

    Args:
        name: a name such as `resnet12`, or a pattern such as `conv4-<filters>-pool`, whose number is passed to the
            function as the keyword `filters`.

    Raises:
        UserError: the name is taken.
    """

    def register(build: _B) -> _B:
        backbones.add(name, build)
        return build

    return register

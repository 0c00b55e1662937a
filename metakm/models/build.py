"""Build a backbone by its name."""

from __future__ import annotations

import re

from torch import nn

from metakm.errors import UserError
from metakm.models.modes import BatchNormMode
from metakm.models.registry import backbones
from metakm.registry import describe_error, import_modules

import_modules("metakm.models")

__all__ = ["backbones", "make_backbone"]


def make_backbone(name: str, image_shape: tuple[int, int, int], bn_mode: BatchNormMode = "transductive") -> nn.Module:
    """Build the backbone called `name` for images of `image_shape` (C, H, W).

    Raises:
        UserError: an unknown name, a backbone that does not fit such images, or a plugin's builder that fails.
    """
    for known in backbones.names():
        pattern = re.sub(r"<(\w+)>", r"(?P<\1>[1-9]\\d{0,3})", known)
        if match := re.fullmatch(pattern, name):
            build = backbones.get(known)
            numbers = {key: int(value) for key, value in match.groupdict().items()}
            try:
                return build(image_shape, bn_mode, **numbers)
            except UserError:
                raise
            except Exception as error:  # a plugin's code may raise anything; a built-in's errors are passed on
                if build.__module__.startswith("metakm.models."):
                    raise
                raise UserError(f"Expected the backbone {name!r} to be built, got {describe_error(error)}") from error
    known_names = ", ".join(backbones.names())
    raise UserError(f"Expected backbone to be one of {known_names}, got {name!r}; for example conv4-64-stride")

"""Backbones and the layers they are made of, imported on first use (PEP 562): `metakm.models.modes` needs no torch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metakm.models.build import make_backbone
    from metakm.models.conv4 import Conv4
    from metakm.models.layers import BatchNorm2d, Conv2d, Linear
    from metakm.models.resnet import CifarResNet

_home = {
    "BatchNorm2d": "layers",
    "CifarResNet": "resnet",
    "Conv2d": "layers",
    "Conv4": "conv4",
    "Linear": "layers",
    "make_backbone": "build",
}

__all__ = ["BatchNorm2d", "CifarResNet", "Conv2d", "Conv4", "Linear", "make_backbone"]


if not TYPE_CHECKING:  # see metakm/__init__.py

    def __getattr__(name: str) -> Any:
        """Import a public name where it is first asked for."""
        if name not in _home:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = getattr(importlib.import_module(f"{__name__}.{_home[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Build a backbone by its name."""

from __future__ import annotations

import re

from torch import nn

from metakm.errors import UserError, describe_error
from metakm.io.tensor_file import fingerprint_of
from metakm.models.conversion import carry_tasks
from metakm.models.layers import BatchNorm2d
from metakm.models.modes import BatchNormMode
from metakm.models.named_network import is_named_network, load_backbone_weights, named_network
from metakm.models.pretrained import FEWSHOT, LITE0
from metakm.models.registry import OWN, ImageShape, backbones
from metakm.registry import import_modules

import_modules("metakm.models")

__all__ = ["backbones", "given_backbone", "make_backbone", "require_backbone", "weights_fingerprint"]

_FINGERPRINT = "_weights_fingerprint"


def make_backbone(
    name: str,
    image_shape: ImageShape,
    bn_mode: BatchNormMode = "transductive",
    weights: str | None = None,
) -> nn.Module:
    """Build the backbone called `name` for images of `image_shape` (C, H, W).

    Args:
        name: of a registered one, or `timm:NAME`, `torchvision:NAME`, `file.py:Class`.
        weights: to start from: a file, or "pretrained" for those of the library.

    Raises:
        UserError: an unknown name, a backbone that does not fit such images, a plugin's builder that fails, or weights
            of another network.
    """
    if is_named_network(name):
        backbone = named_network(name, image_shape, bn_mode, weights)
    else:
        plain = _build_registered(name, image_shape, bn_mode)
        load_backbone_weights(plain, name, weights)
        backbone = carry_tasks(plain, image_shape, bn_mode)
    if weights is not None:
        object.__setattr__(backbone, _FINGERPRINT, fingerprint_of(backbone.state_dict()))
    return backbone


def given_backbone(
    backbone: str | nn.Module | None,
    image_shape: ImageShape | None,
    bn_mode: BatchNormMode,
    weights: str | None,
) -> nn.Module | None:
    """A backbone that is named, built by `make_backbone`, or the one that is given, as it is.

    Raises:
        UserError: a name without `image_shape`; weights, or another `bn_mode` than its layers have, for one that is
            built.
    """
    if isinstance(backbone, str):
        if image_shape is None:
            raise UserError(f"Expected image_shape (C, H, W) to build the backbone {backbone!r}, got none; pass it")
        return make_backbone(backbone, image_shape, bn_mode, weights)
    if weights is not None:
        raise UserError(
            "Expected weights only with a backbone given by name, got one that is built; load them into it first"
        )
    modes = {module.mode for module in backbone.modules() if isinstance(module, BatchNorm2d)} if backbone else set()
    if bn_mode != "transductive" and modes - {bn_mode}:
        raise UserError(
            f"Expected bn_mode {bn_mode!r} of the backbone's layers, got {', '.join(map(repr, sorted(modes)))}; build "
            "the backbone with it"
        )
    return backbone


def weights_fingerprint(module: nn.Module) -> str:
    """SHA-256 of the trained weights from which the backbone in `module` started; empty if there are none."""
    found = (getattr(part, _FINGERPRINT, "") for part in module.modules())
    return next((each for each in found if each), "")


def require_backbone(name: str) -> None:
    """Refuse a name by which no backbone can be built.

    Raises:
        UserError: lists the known names and the nearest.
    """
    if not (is_named_network(name) or name == OWN):
        _registered(name)


def _registered(name: str) -> tuple[str, dict[str, int]]:
    """The registered name, such as conv4-<filters>-pool, that `name` matches, and the numbers in it."""
    for known in backbones.names():
        pattern = re.sub(r"<(\w+)>", r"(?P<\1>[1-9]\\d{0,3})", re.escape(known))
        if match := re.fullmatch(pattern, name):
            return known, {key: int(value) for key, value in match.groupdict().items()}
    if name == FEWSHOT:
        raise UserError(
            f"Expected a network as the backbone, got {name!r}, a pack for it: a base of `metakm fit`; use {LITE0}"
        )
    raise backbones.unknown(name, LITE0, "timm:NAME", "torchvision:NAME", "file.py:Class")


def _build_registered(name: str, image_shape: ImageShape, bn_mode: BatchNormMode) -> nn.Module:
    known, numbers = _registered(name)
    build = backbones.get(known)
    try:
        return _module(build(image_shape, bn_mode, **numbers), name)
    except UserError:
        raise
    except Exception as error:  # a plugin's code may raise anything; a built-in's errors are passed on
        if build.__module__.startswith("metakm.models."):
            raise
        raise UserError(f"Expected the backbone {name!r} to be built, got {describe_error(error)}") from error


def _module(built: object, name: str) -> nn.Module:
    if not isinstance(built, nn.Module):
        raise UserError(
            f"Expected the builder of {name!r} to return an nn.Module, got {type(built).__name__}; return the module"
        )
    return built

"""The safetensors file of a learner: how it was built, and what it has learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metakm.errors import UserError
from metakm.io.tensor_file import TensorFile
from metakm.models.registry import ImageShape

_FILE = TensorFile("weights file", key="metakm.run", version=1, source="a run writes one when it is done")


class SavedLearner(NamedTuple):
    """What a learner's file holds.

    config: how the learner was built, as JSON values by the names of a run's config.
    image_shape: (C, H, W) of its images; None where its backbone says so itself.
    state: its `state_dict()`.
    train_classes: number of training classes; None where its strategy does not ask for it.
    """

    config: dict[str, Any]
    image_shape: ImageShape | None
    state: dict[str, Any]
    train_classes: int | None = None


def learner_file(saved: SavedLearner) -> bytes:
    """The whole file.

    Raises:
        UserError: tensors that safetensors does not have, such as sparse ones.
    """
    shape = None if saved.image_shape is None else list(saved.image_shape)
    classes = {} if saved.train_classes is None else {"train_classes": int(saved.train_classes)}
    config = {name: value.item() if isinstance(value, np.generic) else value for name, value in saved.config.items()}
    apart = {name: tensor.detach().cpu().clone() for name, tensor in saved.state.items()}  # parts share tensors
    return _FILE.to_bytes({"config": config, "image_shape": shape, **classes}, apart)


def read_learner_file(path: Path | str) -> SavedLearner:
    """Inverse of `learner_file`.

    Raises:
        UserError: the file is damaged, foreign or of another format.
    """
    header, tensors = _FILE.read(path)
    try:
        config, shape, classes = header["config"], header["image_shape"], header.get("train_classes")
        if not isinstance(config, dict):
            raise TypeError(f"the config is {config!r:.80}")
        if not (classes is None or (type(classes) is int and classes > 0)):
            raise ValueError(f"train_classes {classes!r:.80}")
        if shape is None:
            return SavedLearner(config, None, tensors, classes)
        channels, height, width = shape
        if not all(type(side) is int and side > 0 for side in shape):
            raise ValueError(f"image_shape {shape!r:.80}")
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"Expected the header of a trained run in {path}, got another: {error}; copy it again"
        ) from error
    return SavedLearner(config, (channels, height, width), tensors, classes)


def flat_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The `state_dict()` of a learner; checkpoints before metakm 0.3 have its parts apart."""
    if {*state} != {"strategy", "rates"}:
        return dict(state)
    rates = {f"rates.{i}": rate for i, rate in enumerate(state["rates"])}
    return {**{f"strategy.{name}": tensor for name, tensor in state["strategy"].items()}, **rates}


def require_same_kind(state: Mapping[str, Any], own: Mapping[str, Tensor]) -> None:
    """Refuse what `load_state_dict` would take although no run writes it.

    Raises:
        TypeError: a tensor whose values would be rounded.
        ValueError: a learned rate too few or too many.
    """
    given, expected = ([name for name in names if name.startswith("rates.")] for names in (state, own))
    if {*given} != {*expected}:
        raise ValueError(f"{len(given)} learned inner rates, where {len(expected)} belong")
    for name, like in own.items():
        if name not in state:
            continue
        new = state[name]
        same_kind = new.is_floating_point() == like.is_floating_point()
        if not (same_kind and torch.promote_types(new.dtype, like.dtype) == like.dtype):
            raise TypeError(f"{name} of {new.dtype}, where the strategy has {like.dtype}")

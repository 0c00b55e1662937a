"""Settings of a fit, alike on the command line and in Python."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from metakm.errors import unknown_name
from metakm.fields import flag, require
from metakm.models.pretrained import FEWSHOT, is_of_library
from metakm.modulation.precision import PackPrecision
from metakm.photos.methods import MethodName
from metakm.photos.validation import ValidationChoice

MethodChoice = Literal["default", MethodName, "auto", "few-shot"]

DEFAULT_METHOD: MethodChoice = "default"
PLAIN_METHOD: MethodChoice = "norm"
"""Of a base that was not meta-trained: adapts more than the classifier without a search."""


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How to fit.

    Raises:
        UserError: a value of another type, out of its range, or not among its choices.
    """

    base: str = "efficientnet-lite0"
    """Pretrained network: efficientnet-lite0, timm:NAME, torchvision:NAME or file.py:Class (the file runs with your permissions); or one that was meta-trained: efficientnet-lite0-fewshot, the folder of a run, or its pack.safetensors."""  # noqa: E501
    weights: Path | None = None
    """File with weights of the base, in place of its own."""
    method: MethodChoice = DEFAULT_METHOD
    """What is trained besides the head: kernel modulators (km), norm layers (norm), both, nothing (head; centroid and ridge with a head in closed form), low-rank additions (lora), everything (full). auto takes the best of head, norm, km, both and lora on held-out photos; few-shot the best of centroid, ridge and norm, and centroid if each class has one photo. default: few-shot for a meta-trained base, norm for others."""  # noqa: E501
    size: int | None = None
    """Side of the images in pixels; that of the base by default."""
    validation: ValidationChoice = "auto"
    """Photos to hold out, for calibration, early stopping and the choice of a method. folds: each photo once, in --folds folds; part: a fifth; none; auto: folds below 400 photos, part from 400 on."""  # noqa: E501
    folds: int = 3
    """Number of cross-validation folds."""
    augment: bool = True
    """Train on random crops, flips and colour jitter."""
    precision: PackPrecision = "full"
    """Precision of the tensors stored in the pack, not of the training: full, or fp16 for half the bytes."""
    seed: int = 0
    """Seed of the folds, augmentation and photo order."""
    device: str = "auto"
    """auto, cpu or cuda."""
    task: str | None = None
    """Name of the task in the pack; by default the name of the output file, in Python that of the folder of photos."""

    def __post_init__(self) -> None:
        require(isinstance(self.base, str | os.PathLike), "base", "a name or a path", repr(self.base))
        object.__setattr__(self, "base", os.fspath(self.base))
        require(isinstance(self.weights, str | os.PathLike | None), "weights", "a path", repr(self.weights))
        for name, hint in get_type_hints(FitSettings).items():
            value = getattr(self, name)
            if get_origin(hint) is Literal and value not in get_args(hint):
                raise unknown_name(flag(name), str(value), get_args(hint))
            if int in (hint, *get_args(hint)) and value is not None:
                require(type(value) is int, name, "a whole number", repr(value))
            require(hint is not bool or type(value) is bool, name, "True or False", repr(value))
        require(isinstance(self.task, str | None), "task", "a name", repr(self.task))
        require(self.folds >= 2, "folds", "at least 2", self.folds)
        require(self.size is None or self.size >= 32, "size", "at least 32", self.size)
        require(0 <= self.seed < 2**31, "seed", "from 0 to 2147483647", self.seed)
        auto = self.method == "auto"
        require(not auto or self.validation != "none", "validation", "folds or part for --method auto", "none")


def as_header(settings: FitSettings) -> dict[str, object]:
    """The settings as JSON values, without what is private: where files lie."""
    weights = None if settings.weights is None else Path(settings.weights).name
    return {**dataclasses.asdict(settings), "base": without_folder(settings.base), "weights": weights}


def without_folder(base: str) -> str:
    """The name of a base; of a file or a run only its own, without the folders that it lies in."""
    return Path(base).absolute().name if is_local(base) else base


def is_local(base: str) -> bool:
    """Whether a base is a file or a folder of the user's."""
    return base != FEWSHOT and not is_of_library(base)

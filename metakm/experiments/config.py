"""What the three experiments have in common: flags, their validation, and the identity of one run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from metakm.cli.flags import read_options, texts_given
from metakm.config.execution import ExecutionOptions
from metakm.config.json_values import json_value
from metakm.errors import unknown_name
from metakm.experiments.batches import Augmentation
from metakm.experiments.row import EXPERIMENT_EXECUTION_FIELDS
from metakm.fields import flag, require, require_folder

ExperimentPreset = Literal["quick", "short", "paper"]
Optimiser = Literal["sgd", "adam"]
RateSchedule = Literal["steps", "cosine"]


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig(ExecutionOptions):
    """Flags of every experiment; their defaults follow --preset."""

    preset: ExperimentPreset = "quick"
    """Where the defaults come from. quick: small and few images; short: fewer epochs, in transfer also a smaller network; paper: its schedule."""  # noqa: E501
    image_size: int
    """Side of the images in pixels."""
    train_images: int
    """Training images of all classes together, the first of each class; 0: all."""
    epochs: int
    """Passes over the training images."""
    batch: int
    """Images in a batch; an epoch leaves out the images that do not fill one."""
    optimiser: Optimiser
    """sgd with momentum 0.9, or adam."""
    learning_rate: float = 0.0
    """Learning rate. 0: the rate chosen for each method on the validation part, or published for it."""
    schedule: RateSchedule
    """Schedule of the learning rate. steps: a tenth after half of the epochs, a hundredth after 3/4; cosine: to 0."""
    weight_decay: float
    """Weight decay of the parameters that are trained."""
    augmentation: Augmentation
    """pad-crop: shift by up to an eighth of the side, flip; resized-crop: crop 22 to 100 % of the area, flip; none."""
    hold_out: bool = False
    """Hold out a validation part and validate after each epoch; always on with --tune and --train-images. --no-hold-out trains on that part as well."""  # noqa: E501
    tune: bool = False
    """Do not use the test part; the row then has the accuracy on the validation part only."""
    seed: int = 0
    """Seed of the initial weights, the order of the images and their augmentation."""

    def __post_init__(self) -> None:
        for field, low in {"image_size": 8, "train_images": 0, "epochs": 1, "batch": 2, "seed": 0}.items():
            require(getattr(self, field) >= low, field, f"at least {low}", getattr(self, field))
        for field in ("learning_rate", "weight_decay"):
            value = getattr(self, field)
            require(math.isfinite(value) and value >= 0, field, "0 or more", value)
        require(self.seed < 2**63, "seed", "below 2**63", self.seed)
        choices = {
            "preset": ExperimentPreset,
            "optimiser": Optimiser,
            "schedule": RateSchedule,
            "augmentation": Augmentation,
        }
        for field, names in choices.items():
            if getattr(self, field) not in get_args(names):
                raise unknown_name(flag(field), getattr(self, field), get_args(names))
        require_folder(self.out, "out")
        super().__post_init__()

    @property
    def holds_out(self) -> bool:
        """Whether the validation part is kept out of training."""
        return self.hold_out or self.tune or self.train_images > 0


@dataclass(frozen=True)
class MethodConfig:
    """One run: the experiment's flags with the method's name and what the method settles."""

    flags: ExperimentConfig
    experiment: str
    method: str
    learning_rate: float
    momentum: float  # of SGD
    weight_decay: float
    residual_start: float = 1.0  # of the scale of each residual block's last norm
    annealed: bool = True  # whether the learning rate follows the experiment's schedule, or stays as it is

    @property
    def execution(self) -> ExecutionOptions:
        """How and where the run is executed."""
        return self.flags

    @property
    def folder(self) -> Path:
        """`<out>/<experiment>/<method>/seed<k>`."""
        return self.flags.out / self.experiment / self.method / f"seed{self.flags.seed}"

    @property
    def run_id(self) -> str:
        """Readable name of what this run computes, with a digest of every field that matters for it."""
        digest = hashlib.sha256(json.dumps(self.identity()).encode()).hexdigest()[:8]
        return f"{self.experiment}-{self.method}-{self.flags.preset}-seed{self.flags.seed}-{digest}"

    def identity(self) -> dict[str, Any]:
        """The fields that determine the results of the run."""
        return {k: v for k, v in self.to_json().items() if k not in EXPERIMENT_EXECUTION_FIELDS}

    def may_change(self, earlier: Mapping[str, Any]) -> frozenset[str]:
        """None: the schedule of the learning rate follows the number of epochs."""
        del earlier
        return frozenset()

    def defaults(self) -> dict[str, Any]:
        """Of the fields that older files lack."""
        return {"residual_start": 1.0, "annealed": True, "hold_out": True}

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values; the method's own replace the experiment's."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "flags"}
        return {name: json_value(value) for name, value in {**vars(self.flags), **own}.items()}


C = TypeVar("C", bound=ExperimentConfig)


def parse(presets: Mapping[ExperimentPreset, C], prog: str, arguments: Sequence[str] | None = None) -> C:
    """Read the command line; the flags' defaults are those of the preset asked for.

    Raises:
        UserError: see `read_options`.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    given = texts_given(arguments, ("preset",))["preset"]
    default = presets.get(cast(ExperimentPreset, given or "quick"))
    if default is None:
        raise unknown_name("--preset", str(given), presets)
    return read_options(type(default), f"python -m {prog}", arguments, default)

"""What the paper says of Tables I and II and Fig. 5: values, how methods compare, and how they are trained.

`paper.csv` holds the published values; those of Fig. 5 are only in the text, as statements.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import NamedTuple

from metakm.experiments.chosen_rates import MOMENTUM, TRANSFER_PUBLISHED, scratch_rate, scratch_sgd
from metakm.experiments.lines import ComparableSetup, Line


class Statement(NamedTuple):
    """What the paper says about two methods, in its words or ours."""

    first: str
    relation: str  # of the first relative to the second
    second: str


TABLE1_CLAIMS = (
    *(Statement("km", "above", other) for other in ("bl", "sn", "ld", "ld-constant", "tbn")),
    *(Statement(other, "above", "bl") for other in ("sn", "ld", "ld-constant", "tbn")),
    Statement("full", "above", "km"),
    Statement("km-channel", "and (no claim in the paper)", "km"),
)
TABLE2_CLAIMS = (
    Statement("tkm-1", "above", "tbl-1"),
    Statement("tkm-2", "above", "tkm-1"),
    Statement("tkm-2", "above", "nc"),
    Statement("tkm-2", "close to", "ttl"),
    Statement("tbl-2", "above", "tkm-2"),
)
FIG5_CLAIMS = (
    Statement("sin", "close to", "default"),
    Statement("leaky-relu", "below", "default"),
    Statement("relu", "below", "default"),
    Statement("orthogonal", "close to", "default"),
    Statement("diagonal", "15 points below", "default"),
    Statement("depth-1", "close to", "default"),
    *(Statement(f"depth-{depth}", "below", "default") for depth in (5, 10, 20, 50)),
)

_OF_ROW = ("image_size", "n_train", "epochs", "batch", "optimiser")
SCRATCH_SCHEDULE: Mapping[str, object] = {
    "image_size": 32, "n_train": 50_000, "epochs": 200, "batch": 128, "optimiser": "sgd", "schedule": "steps",
    "augmentation": "pad-crop",
}  # fmt: skip
TRANSFER_SCHEDULE: Mapping[str, object] = {
    "image_size": 224, "epochs": 50, "batch": 8, "optimiser": "adam", "schedule": "cosine",
    "augmentation": "resized-crop", "backbone": "resnet50", "weights": "pretrained", "norm": "group",
}  # fmt: skip
"""How Table I and Fig. 5, and Table II, are trained."""


@cache
def published_values() -> tuple[dict[str, str], ...]:
    """The lines of `paper.csv`."""
    text = resources.files(__package__).joinpath("paper.csv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))


def is_published(lines: Sequence[Line], schedule: Mapping[str, object]) -> bool:
    """Whether nothing is known to differ from the published schedule in any line of a setup."""
    return _is_published(lines[0].setup, schedule) and all(map(_is_of_preset, lines))


def _is_published(setup: ComparableSetup, schedule: Mapping[str, object]) -> bool:
    known = {**dict(setup.settings), **{name: getattr(setup, name) for name in ("preset", *_OF_ROW)}}
    return all(known.get(name, value) == value for name, value in {"preset": "paper", **schedule}.items())


def _is_of_preset(line: Line) -> bool:
    """Whether the method has the rate, start, momentum and weight decay that preset paper gives it."""
    experiment, _, dataset = line.setup.experiment.partition("-")
    if experiment == "transfer":
        rate, start, momentum, decay = TRANSFER_PUBLISHED.get(dataset), 1.0, MOMENTUM, 0.0
    else:
        rate, start = scratch_rate("paper", line.method if experiment == "scratch" else "km")
        momentum, decay = scratch_sgd(line.method)
    wanted = {"momentum": momentum, "weight_decay": decay, "learning_rate": rate, "residual_start": start}
    known = {name: json.loads(text) for name, text in line.own if name in wanted}
    known |= {name: getattr(line.first, name) for name in ("learning_rate", "residual_start")}
    return all(known.get(name, value) == value for name, value in wanted.items())

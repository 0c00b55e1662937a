"""The learning rates that experiments take where none is given, by preset; their momentum and weight decay.

The rates of quick and short were chosen on the validation part; results/experiments/rates.md lists the runs, as far as
they are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from metakm.experiments.config import ExperimentPreset


class RateAndStart(NamedTuple):
    """A learning rate, and where the scale of each residual block's last norm starts."""

    learning_rate: float = 0.1
    residual_start: float = 1.0


SCRATCH_RATES: dict[ExperimentPreset, dict[str, RateAndStart]] = {
    "quick": {
        "full": RateAndStart(0.03),
        "bl": RateAndStart(0.03),
        "km": RateAndStart(0.03),
        "km-channel": RateAndStart(0.03),
        "sn": RateAndStart(0.3),
        "ld": RateAndStart(3.0),
    },
    "short": {
        "full": RateAndStart(0.1, 0.2),
        "bl": RateAndStart(0.3, 0.2),
        "km": RateAndStart(0.3, 0.2),
        "sn": RateAndStart(0.3, 0.2),
        "ld": RateAndStart(10.0, 0.2),
        "ld-constant": RateAndStart(3.0),
        "tbn": RateAndStart(1.0),
    },
    "paper": {"ld": RateAndStart(3.0)},
}
"""By method; 0.1 and a start of 1 for the others. Of paper, only 0.1 for full (He et al. 2016) and tbn (Frankle et al.
2021) is published; ld's is that of quick, since its own goes with another scale of the bases."""

MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4  # from scratch; in transfer there is none

CONSTANT = "-constant"
"""How the names of methods end whose rate stays as it is."""


def scratch_rate(preset: ExperimentPreset, method: str) -> RateAndStart:
    """What a method takes where nothing is given."""
    rates = SCRATCH_RATES[preset]
    return rates.get(method) or rates.get(method.removesuffix(CONSTANT), RateAndStart())


def scratch_sgd(method: str, weight_decay: float = WEIGHT_DECAY) -> tuple[float, float]:
    """Momentum and weight decay of a method; `ld` is plain SGD."""
    return (0.0, 0.0) if method.removesuffix(CONSTANT) == "ld" else (MOMENTUM, weight_decay)


TRANSFER_RATES: dict[ExperimentPreset, dict[str, dict[str, float]]] = {
    "quick": {"tiny-imagenet": {"tbl-1": 0.03, "nc": 0.01, "tkm-1": 0.01, "tkm-2": 0.01, "ttl": 0.01, "tbl-2": 0.003}},
    "short": {
        "flowers": {"tbl-1": 0.001, "nc": 0.001, "tkm-1": 0.001, "tkm-2": 0.001, "ttl": 0.001, "tbl-2": 0.0003},
        "grocery-store": {"tbl-1": 0.003, "nc": 0.001, "tkm-1": 0.001, "tkm-2": 0.001, "ttl": 0.003, "tbl-2": 0.0003},
    },
}
"""By dataset and method, for the preset's own backbone."""

TRANSFER_PUBLISHED = {"aircraft": 16e-4, "cars": 8e-4, "flowers": 2e-4, "food": 2e-4}
"""Those of Table II, for preset paper and ResNet-50, by dataset; the same for all methods."""

TRANSFER_DEFAULT = 1e-3
"""For other datasets, backbones and methods."""

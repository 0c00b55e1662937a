"""`python -m metakm.experiments.scratch`: CIFAR-10 from scratch (Sec. IV-A, Table I).

full: every parameter of the CIFAR ResNet-32.
bl: its norm affine and classifier; convolutions stay random.
km: bl with explicit kernel modulation. km-channel: with the modulator that also mixes neighbouring channels.
sn: a small ResNet of as many parameters: ResNet-8 of width 5 with projection shortcuts, all trained.
ld: random bases descent on 8,000 directions of a ResNet-8 (see `random_bases`), without momentum and weight decay; a
    projection in every block gives it the paper's 78.3 K parameters.
ld-constant: the same with a learning rate that stays as it is, as published.
tbn: norm affine of a ResNet-110 with projection shortcuts, gamma from U(0, 1), nothing else (Frankle et al. 2021).

For sn, ld and tbn, the paper only cites sources. Widths and shortcuts are chosen here to match its counts of
parameters.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from metakm.cli.exit_code import RESUME, exit_code
from metakm.cli.signals import StopRequest
from metakm.data.loading import data_roots
from metakm.experiments.chosen_rates import CONSTANT, WEIGHT_DECAY, scratch_rate, scratch_sgd
from metakm.experiments.classification import load_cifar10
from metakm.experiments.command import run_all
from metakm.experiments.config import ExperimentConfig, ExperimentPreset, MethodConfig, parse
from metakm.experiments.networks import cifar_classifier
from metakm.experiments.random_bases import RandomBases
from metakm.experiments.run import ExperimentRun, MethodSetup
from metakm.fields import require
from metakm.learning.randomness import seeded
from metakm.modulation import ChannelModulator, modulate
from metakm.modulation.norms import is_norm

ScratchMethod = Literal["full", "bl", "km", "km-channel", "sn", "ld", "ld-constant", "tbn"]
TABLE1: tuple[ScratchMethod, ...] = ("full", "bl", "km", "sn", "ld", "ld-constant", "tbn")
CLASSES = 10
DIRECTIONS, COMPARTMENTS = 8000, 64


@dataclass(frozen=True, kw_only=True)
class FromScratchConfig(ExperimentConfig):
    """Train residual networks from random weights."""

    residual_start: float | None = None
    """Where the scale of each residual block's last norm starts; tbn draws its own. Without it: as chosen for each method together with its rate, else 1."""  # noqa: E501

    def __post_init__(self) -> None:
        super().__post_init__()
        start = self.residual_start
        require(start is None or (math.isfinite(start) and start >= 0), "residual_start", "0 or more", start)


@dataclass(frozen=True, kw_only=True)
class ScratchConfig(FromScratchConfig):
    """Train a ConvNet from scratch on CIFAR-10, as in the paper's Table I."""

    methods: tuple[ScratchMethod, ...] = TABLE1
    """One run each. full: all of ResNet-32; bl: its norms and classifier; km: bl with kernel modulators; km-channel: modulators that mix channels; sn: a small ResNet of as many parameters; ld: random bases descent; ld-constant: without annealing; tbn: the norms of a ResNet-110."""  # noqa: E501


_PAPER = ScratchConfig(
    preset="paper",
    image_size=32,
    train_images=0,
    epochs=200,
    batch=128,
    optimiser="sgd",
    schedule="steps",
    weight_decay=WEIGHT_DECAY,
    augmentation="pad-crop",
)
PRESETS: dict[ExperimentPreset, ScratchConfig] = {
    "quick": replace(
        _PAPER,
        preset="quick",
        image_size=16,
        train_images=10_000,
        epochs=8,
        batch=64,
        schedule="cosine",
        hold_out=True,
    ),
    "short": replace(_PAPER, preset="short", epochs=4, batch=64, schedule="cosine"),
    "paper": _PAPER,
}


def method_config(config: FromScratchConfig, experiment: str, method: str) -> MethodConfig:
    """The config of one run: what the method settles where nothing is given."""
    kind = method.removesuffix(CONSTANT)
    chosen = scratch_rate(config.preset, method)
    rate = config.learning_rate or chosen.learning_rate
    start = config.residual_start
    if start is None or kind == "tbn":
        start = chosen.residual_start
    momentum, decay = scratch_sgd(method, config.weight_decay)
    return MethodConfig(
        config, experiment, method, rate, momentum, decay, residual_start=start, annealed=kind == method
    )


def method_setup(method: str, seed: int, residual_start: float = 1.0) -> MethodSetup:
    """The untrained network of a method: a function of the seed, whatever the global generator's state."""
    with seeded(seed):
        return _BUILDERS[method.removesuffix(CONSTANT)](seed, residual_start)


def _full(_seed: int, start: float) -> MethodSetup:
    return MethodSetup("resnet32", _resnet32(start))


def _bl(_seed: int, start: float) -> MethodSetup:
    return MethodSetup("resnet32", modulate(_resnet32(start), layers=[]))


def _km(_seed: int, start: float) -> MethodSetup:
    return MethodSetup("resnet32", modulate(_resnet32(start), start="paper"))


def _km_channel(_seed: int, start: float) -> MethodSetup:
    return MethodSetup("resnet32", modulate(_resnet32(start), modulator=ChannelModulator, start="paper"))


def _sn(_seed: int, start: float) -> MethodSetup:
    model = cifar_classifier(8, CLASSES, width=5, shortcut="projection", residual_start=start)
    return MethodSetup("resnet8-width5-projection", model)


def _ld(seed: int, start: float) -> MethodSetup:
    model = cifar_classifier(8, CLASSES, shortcut="all-projections", residual_start=start)
    return MethodSetup("resnet8-all-projections", model, RandomBases(DIRECTIONS, COMPARTMENTS, seed))


def _tbn(_seed: int, _start: float) -> MethodSetup:
    model = modulate(cifar_classifier(110, CLASSES, shortcut="projection"), layers=[], classifier=None)
    for module in model.modules():
        if is_norm(module):
            nn.init.uniform_(module.weight)  # type: ignore[arg-type]
    return MethodSetup("resnet110-projection", model)


def _resnet32(start: float) -> nn.Module:
    return cifar_classifier(32, CLASSES, residual_start=start)


_BUILDERS = {"full": _full, "bl": _bl, "km": _km, "km-channel": _km_channel, "sn": _sn, "ld": _ld, "tbn": _tbn}


def execute(config: ScratchConfig) -> int:
    """Run the methods; see `run_all`."""
    data = load_cifar10(config.image_size, data_roots(config.data_root))

    def make(run: MethodConfig, stop: StopRequest) -> ExperimentRun:
        return ExperimentRun(run, method_setup(run.method, config.seed, run.residual_start), data, stop)

    return run_all([method_config(config, "scratch", method) for method in config.methods], make)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 diverged or a file that cannot be written, 2 a user error, 130 interrupted."""
    return exit_code(lambda: execute(parse(PRESETS, "metakm.experiments.scratch", arguments)), RESUME)


if __name__ == "__main__":
    sys.exit(main())

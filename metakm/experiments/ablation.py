"""`python -m metakm.experiments.ablation`: variants of the modulator (Sec. IV-D, Fig. 5).

ResNet-32 from random weights on CIFAR-10, like `km` of `metakm.experiments.scratch`, with one change at a time: the
activation, the initialisation, or the number of layers. `default` has two layers, tanh and the identity start.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from metakm.cli.exit_code import RESUME, exit_code
from metakm.cli.signals import StopRequest
from metakm.data.loading import data_roots
from metakm.errors import unknown_name
from metakm.experiments import scratch
from metakm.experiments.classification import load_cifar10
from metakm.experiments.command import run_all
from metakm.experiments.config import ExperimentPreset, MethodConfig, parse
from metakm.experiments.networks import cifar_classifier
from metakm.experiments.run import ExperimentRun, MethodSetup
from metakm.learning.randomness import seeded
from metakm.modulation import modulate

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "sin": {"activation": "sin"},
    "leaky-relu": {"activation": "leaky_relu"},
    "relu": {"activation": "relu"},
    "orthogonal": {"init": "orthogonal"},
    "diagonal": {"init": "diagonal"},
    **{f"depth-{depth}": {"depth": depth} for depth in (1, 5, 10, 20, 50)},
}


@dataclass(frozen=True, kw_only=True)
class AblationConfig(scratch.FromScratchConfig):
    """Train variants of the kernel modulator, as in the paper's Fig. 5."""

    methods: tuple[str, ...] = tuple(VARIANTS)
    """One run each: default, sin, leaky-relu, relu, orthogonal, diagonal, depth-1, -5, -10, -20, -50."""


def _of(config: scratch.ScratchConfig, **changes: Any) -> AblationConfig:
    shared = {f.name: getattr(config, f.name) for f in fields(scratch.FromScratchConfig)}
    return AblationConfig(**{**shared, **changes})


PRESETS: dict[ExperimentPreset, AblationConfig] = {
    "quick": _of(scratch.PRESETS["quick"], epochs=4, train_images=6400),
    "short": _of(
        scratch.PRESETS["short"],
        epochs=2,
        methods=("default", "sin", "relu", "orthogonal", "diagonal", "depth-1", "depth-10"),
    ),
    "paper": _of(scratch.PRESETS["paper"]),
}


def method_setup(variant: str, seed: int, residual_start: float = 1.0) -> MethodSetup:
    """The untrained network of a variant; the convolutions are the same for all variants of a seed.

    Raises:
        UserError: an unknown variant.
    """
    if variant not in VARIANTS:
        raise unknown_name("variant", variant, VARIANTS)
    with seeded(seed):
        network = cifar_classifier(32, scratch.CLASSES, residual_start=residual_start)
        return MethodSetup("resnet32", modulate(network, start="paper", **VARIANTS[variant]))


def execute(config: AblationConfig) -> int:
    """Run the variants; see `run_all`."""
    for variant in config.methods:
        if variant not in VARIANTS:
            raise unknown_name("variant", variant, VARIANTS)
    data = load_cifar10(config.image_size, data_roots(config.data_root))

    def make(run: MethodConfig, stop: StopRequest) -> ExperimentRun:
        return ExperimentRun(run, method_setup(run.method, config.seed, run.residual_start), data, stop)

    km = scratch.method_config(config, "ablation", "km")  # whose learning rate all variants have
    return run_all([replace(km, method=variant) for variant in config.methods], make)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 diverged or a file that cannot be written, 2 a user error, 130 interrupted."""
    return exit_code(lambda: execute(parse(PRESETS, "metakm.experiments.ablation", arguments)), RESUME)


if __name__ == "__main__":
    sys.exit(main())

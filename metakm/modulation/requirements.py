"""What tensors and layers must be for a network to be modulated."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from metakm.errors import UserError


def check_network(model: object) -> None:
    """Raise UserError unless the model is an `nn.Module`."""
    if not isinstance(model, nn.Module):
        raise UserError(f"Expected a network (nn.Module) to modulate, got {model!r:.100}; build or load it first")


def check_plain(layer: nn.Conv2d, name: str) -> None:
    """Raise UserError unless the layer's weight is a plain parameter, which a modulator can replace."""
    if parametrize.is_parametrized(layer):
        raise UserError(f"Expected a plain layer {name!r}, got a parametrized one; remove its parametrization first")
    if not isinstance(layer._parameters.get("weight"), nn.Parameter):
        raise UserError(
            f"Expected a plain layer {name!r}, got one whose weight is computed (weight_norm, spectral_norm, pruning); "
            "remove that first (torch.nn.utils.remove_weight_norm, remove_spectral_norm, prune.remove)"
        )


def check_writable(tensors: Iterable[Tensor]) -> None:
    """Raise UserError if one was made in inference mode: outside of it such tensors cannot be trained or written to."""
    if any(not is_lazy(tensor) and tensor.is_inference() for tensor in tensors):
        raise UserError("Expected a model of ordinary tensors, got one made in torch.inference_mode; build it outside")

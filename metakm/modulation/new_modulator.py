"""A new modulator for a layer of a network."""

from __future__ import annotations

import inspect

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from metakm.errors import UserError
from metakm.modulation.coverage import check_plain
from metakm.modulation.modulators import Activation, Initialisation, Start, start_scale


def modulator_for(
    layer: nn.Conv2d,
    name: str,
    modulator: type[nn.Module],
    start: Start,
    depth: int,
    activation: Activation,
    init: Initialisation,
) -> nn.Module:
    """A new modulator of `layer`, on its device and in its precision; `name` is the layer's, for messages.

    Raises:
        UserError: a weight that is computed or lazy, or a modulator without a scale for an exact start.
    """
    check_plain(layer, name)
    if is_lazy(layer.weight):
        raise UserError(f"Expected an initialised weight in {name!r}, got a lazy one; run the model once first")
    if hasattr(modulator, "for_weight"):
        return _like(layer.weight, modulator.for_weight(layer.weight))
    scale = start_scale(start, layer.weight)
    if scale is not None and "scale" not in inspect.signature(modulator).parameters:
        raise UserError(
            f"Expected {modulator.__qualname__} to take a scale for an exact start, got none; add it, or pass "
            'start="paper"'
        )
    scaled = {} if scale is None else {"scale": scale}
    size = (layer.kernel_size[0], layer.kernel_size[1])
    return _like(layer.weight, modulator(size, depth, activation, init, **scaled))


def _like(weight: Tensor, network: nn.Module) -> nn.Module:
    """`network` on the weight's device and in its precision, unless it is yet to be loaded, on the meta device."""
    if any(parameter.is_meta for parameter in network.parameters()):
        return network
    return network.to(weight.device, weight.dtype)

"""A new modulator for a layer of a network."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from metakm.errors import UserError, one_line
from metakm.modulation.modulators import Activation, Initialisation, Start, start_scale
from metakm.modulation.requirements import check_plain

DEPTH = 2
"""Layers of a modulator by default."""
EXACT = 1e-2
"""How much of the largest value in W an exact start may miss, which allows for bfloat16."""


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
        UserError: a weight that is computed, lazy or without values, a modulator without a scale for an exact start,
            one that does not map a kernel to another or does not start exactly, or that would ignore an argument.
    """
    check_plain(layer, name)
    if is_lazy(layer.weight):
        raise UserError(f"Expected an initialised weight in {name!r}, got a lazy one; run the model once first")
    if layer.weight.is_meta:
        raise UserError(f"Expected a weight with values in {name!r}, got one on the meta device; load it first")
    if hasattr(modulator, "for_weight"):
        if (depth, activation, init) != (DEPTH, "tanh", "identity"):
            raise UserError(
                f"Expected no depth, activation or init for {modulator.__qualname__}, which has none, got "
                f"{depth}, {activation!r} and {init!r}; leave them out"
            )
        network: nn.Module = modulator.for_weight(layer.weight)
    else:
        scale = start_scale(start, layer.weight)
        if scale is not None and "scale" not in inspect.signature(modulator).parameters:
            raise UserError(
                f"Expected {modulator.__qualname__} to take a scale for an exact start, got none; add it, or pass "
                'start="paper"'
            )
        scaled = {} if scale is None else {"scale": scale}
        size = (layer.kernel_size[0], layer.kernel_size[1])
        network = modulator(size, depth, activation, init, **scaled)
    if any(parameter.is_meta for parameter in network.parameters()):  # yet to be loaded
        return network
    network = network.to(layer.weight.device, layer.weight.dtype)
    _try(network, layer.weight, exact=start == "exact")
    return network


@torch.no_grad()
def _try(network: nn.Module, weight: Tensor, exact: bool) -> None:
    """Refuse a modulator that does not give another kernel, or, with an exact start, the same one to rounding."""
    name = type(network).__qualname__
    try:
        made = network(weight)
    except Exception as error:  # a modulator of the user's may raise anything
        if type(network).__module__.startswith("metakm."):
            raise
        raise UserError(
            f"Expected {name} to map a kernel {list(weight.shape)}, got {type(error).__name__}: {one_line(error)}"
        ) from error
    if not isinstance(made, Tensor) or made.shape != weight.shape:
        got = list(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise UserError(f"Expected {name} to map a kernel {list(weight.shape)} to one of that shape, got {got}")
    if exact and not torch.allclose(made, weight, rtol=0, atol=EXACT * float(weight.abs().max())):
        raise UserError(
            f'Expected {name} to return W at the start, as start="exact" says, got another kernel; change its '
            'initial values, or pass start="paper"'
        )

"""Fast weights: a module whose parameters are replaced step after step, differentiably.

The one module that imports `higher`. On a GPU its SGD is replaced by one of fewer launches.
"""

from __future__ import annotations

from collections.abc import Sequence

import higher
import torch
from torch import Tensor, nn

from metakm.ops.sgd_step import SGDStep


def with_fast_weights(module: nn.Module, starts: Sequence[Tensor], graph: bool) -> nn.Module:
    """A patched copy of `module` whose parameters are `starts`, in the module's order.

    Args:
        graph: keep what a meta-gradient needs.
    """
    patched = higher.monkeypatch(module, copy_initial_weights=False, track_higher_grads=graph)
    patched.update_params(list(starts))
    return patched  # type: ignore[no-any-return]


def release(patched: nn.Module) -> None:
    """Drop `higher`'s references to the fast weights: its patched classes are cycles only the collector frees."""
    for module in patched.modules():
        module._fast_params = None  # type: ignore[assignment]
        for name in module._parameters:
            module._parameters[name] = None


def inner_optimiser(module: nn.Module, adapted: nn.Module, graph: bool) -> higher.optim.DifferentiableOptimizer:
    """SGD on the parameters of `adapted`, the patched `module`, with rates given at each step.

    Args:
        graph: keep what a meta-gradient needs.
    """
    parameters = list(module.parameters())
    plain = torch.optim.SGD([{"params": [p]} for p in parameters], lr=0.0)
    kind = _LeanSGD if _fewest_launches(parameters[0]) else higher.optim.DifferentiableSGD
    return kind(plain, parameters, fmodel=adapted, track_higher_grads=graph)


def _fewest_launches(parameter: Tensor) -> bool:
    """Whether launching an operation costs more than computing it."""
    return parameter.is_cuda


class _LeanSGD(higher.optim.DifferentiableSGD):  # type: ignore[misc]
    """`higher`'s SGD without momentum or decay, in fewer launches."""

    def _update(self, grouped_grads: list[list[Tensor | None]], **_: object) -> None:
        for group, (gradient,) in zip(self.param_groups, grouped_grads, strict=True):
            if gradient is not None:
                (parameter,), rate = group["params"], group["lr"]
                fixed = not isinstance(rate, Tensor)
                group["params"] = [
                    torch.add(parameter, gradient, alpha=-rate) if fixed else SGDStep.apply(parameter, gradient, rate)
                ]

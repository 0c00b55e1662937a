"""How much of a network modulation covers; too little is refused."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from torch import nn

from metakm.errors import UserError
from metakm.modulation.norms import is_norm

LEAST_SHARE = 0.1  # of the parameters outside the classifier

_log = logging.getLogger(__name__)


def check_coverage(model: nn.Module, modulated: Mapping[str, nn.Conv2d], head: Iterable[nn.Module]) -> None:
    """Log which layers with weights stay frozen although they are not norms; refuse if that is nearly all.

    Args:
        modulated: the layers to modulate, by name.
        head: the modules of the classifier.

    Raises:
        UserError: the modulated layers hold less than a tenth of the parameters outside the classifier.
    """
    apart = {id(module) for module in head}
    outside = {id(p): p.numel() for m in model.modules() if id(m) not in apart for p in m.parameters(recurse=False)}
    weights = {id(p): p.numel() for layer in modulated.values() for p in layer.parameters(recurse=False)}
    share = sum(weights.values()) / max(1, sum(outside.values()))
    own = {id(layer) for layer in modulated.values()}
    frozen: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if (
            id(module) not in apart | own
            and not is_norm(module)
            and any(True for _ in module.parameters(recurse=False))
        ):
            frozen.setdefault(type(module).__name__, []).append(name)
    listed = ", ".join(
        f"{len(names)} {kind} ({names[0]}{', ...' if names[1:] else ''})" for kind, names in frozen.items()
    )
    if share < LEAST_SHARE:
        raise UserError(
            f"Expected Conv2d layers with a tenth of the parameters outside the classifier, got {100 * share:.1f} %; "
            f"the others, which would stay frozen: {listed}; "
            "choose layers with layers=, or name the part to train as classifier="
        )
    if listed:
        _log.warning("modulates %d Conv2d layers; frozen: %s", len(modulated), listed)

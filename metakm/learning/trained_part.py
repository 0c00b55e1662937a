"""What of a backbone an outer loop trains: everything, its norms, kernel modulators, or both (`--train`).

Kernel modulators are those of the strategy, if it has its own, as km and km-proto do. Otherwise they are attached to
every convolution of the backbone, start at W~ = W, and are part of it from then on.
"""

from __future__ import annotations

from typing import get_args

from torch import nn

from metakm.errors import UserError, unknown_name
from metakm.models.modes import TrainedPart
from metakm.modulation import KernelModulator, modulate
from metakm.modulation.norms import is_norm
from metakm.strategies import Strategy
from metakm.strategies.km import KM


def attach_modulators(backbone: nn.Module | None, part: TrainedPart, strategy: type[Strategy]) -> None:
    """Attach modulators to the convolutions of a backbone, if `part` asks for them and the strategy has none.

    Raises:
        UserError: an unknown part, a part of no backbone, or a backbone without convolutions.
    """
    if part not in get_args(TrainedPart):
        raise unknown_name("train", part, get_args(TrainedPart))
    if part == "full":
        return
    if backbone is None:
        raise UserError(f"Expected --train full for a strategy with a network of its own, got {part!r}; leave it out")
    if part in ("km", "both") and not issubclass(strategy, KM):
        modulate(backbone, layers=lambda *_: True, classifier=None)
        backbone.requires_grad_(True)


def freeze_rest(strategy: Strategy, backbone: nn.Module | None, part: TrainedPart) -> list[nn.Parameter]:
    """What the outer loop leaves as it is: of the backbone all but `part`, and modulators that it does not name.

    These parameters take no gradients any more, apart from those that the inner loop adapts.

    Raises:
        UserError: modulators of the backbone that the inner loop would adapt together with the kernels; or a backbone
            without norms to train.
    """
    if part == "full" or backbone is None:
        return []
    adapted = {id(p) for p in strategy.adapted.parameters()}
    of_norms = {id(p) for m in backbone.modules() if is_norm(m) for p in m.parameters(recurse=False)}
    if part in ("norm", "both") and not of_norms:
        raise UserError(
            f"Expected a backbone with norm layers that have weights for --train {part}, got none; choose full"
            + (" or km" if part == "both" else "")
        )
    modulators = [m for m in strategy.modules() if isinstance(m, KernelModulator)]
    own = [p for m in modulators for p in m.parameters()]
    attached = {id(p) for m in backbone.modules() if isinstance(m, KernelModulator) for p in m.parameters()}
    if adapted & attached:
        raise UserError(
            f"Expected --train norm or full with {type(strategy).__qualname__}, whose inner loop adapts the kernels "
            f"themselves, got {part!r}; choose one of these, or a strategy such as protonet, anil or km"
        )
    trained = (of_norms if part in ("norm", "both") else set()) | (
        {id(p) for p in own} if part in ("km", "both") else set()
    )
    frozen = [p for p in _once([*backbone.parameters(), *own]) if id(p) not in trained]
    for parameter in frozen:
        if id(parameter) not in adapted:
            parameter.requires_grad_(False)
    return frozen


def _once(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    return list({id(p): p for p in parameters}.values())

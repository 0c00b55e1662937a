"""What the iterations of a meta-training take, which may differentiate in several ways one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from metakm.learning.outer_loop import OuterLoop


class Phase(NamedTuple):
    """Iterations that differentiate alike: the number of the first, of the one after the last, and seconds for each."""

    first: int
    end: int
    seconds: float


def trial_phases(loop: OuterLoop) -> list[Phase]:
    """The phases that a loop has before it, each with the time of a trial; see `OuterLoop.trial_seconds`.

    A phase begins where `multi_step_loss` ends, and where `second_order_from` is reached.
    """
    now, total, shared = loop.iteration, loop.config.iterations, loop.config.shared
    begins = (shared.multi_step_loss, math.ceil(shared.second_order_from * total))
    bounds = sorted({min(now, total), *(begin for begin in begins if now < begin < total), total})
    found = []
    try:
        for first, end in reversed([*pairwise(bounds)]):  # the present one last: a GPU keeps what it has captured
            loop.iteration = first
            found.append(Phase(first, end, loop.trial_seconds()))
    finally:
        loop.iteration = now
    return found[::-1]


def seconds_of(phases: Iterable[Phase], done: int = 0) -> float:
    """All iterations of the phases but the first `done` of the training."""
    return sum(phase.seconds * max(0, phase.end - max(phase.first, done)) for phase in phases)

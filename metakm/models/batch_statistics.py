"""Where batch norm takes its statistics from, and whether it keeps running averages, within a block of code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import NamedTuple


class BatchStatistics(NamedTuple):
    """What the block that the code is in asks of batch norm."""

    reference: int | None = None  # statistics come from this many leading images
    total: int | None = None  # of this many; None: not checked
    track: bool = False  # fold the batch statistics into the running ones


_AT_HAND = BatchStatistics()
_statistics: ContextVar[BatchStatistics] = ContextVar("metakm_statistics", default=_AT_HAND)


@contextlib.contextmanager
def statistics_from(reference: int, total: int | None = None) -> Iterator[None]:
    """Within the block, `bn_mode="support"` layers take batch statistics from the first `reference` images only.

    With the `total` of images, such layers refuse feature maps whose first axis is another.
    """
    token = _statistics.set(BatchStatistics(reference=reference, total=total))
    try:
        yield
    finally:
        _statistics.reset(token)


@contextlib.contextmanager
def tracking_statistics() -> Iterator[None]:
    """Within the block, `bn_mode="running"` layers fold each batch into their running statistics."""
    token = _statistics.set(BatchStatistics(track=True))
    try:
        yield
    finally:
        _statistics.reset(token)


def current_statistics() -> BatchStatistics:
    """Those of the innermost block; those of the batch outside of all blocks."""
    return _statistics.get()

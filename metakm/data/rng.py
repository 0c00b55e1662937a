"""Numbered streams of random words that are the same on every machine and with every version of numpy.

Only the raw output of Philox-4x64-10 is used: it is a published function of key and counter (Salmon et al. 2011).
numpy promises stability for raw streams, not for the methods of `Generator`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

STREAMS = 2**64
"""Number of streams per key."""


def stream_key(*parts: str | int) -> int:
    """Hash names and numbers to a 128-bit Philox key."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:16], "little")


def raw_words(key: int, streams: Sequence[int], count: int) -> npt.NDArray[np.uint64]:
    """Return the first `count` 64-bit words of the given streams, `[len(streams), count]`.

    The stream's number is the highest of the four counter words, so two streams of a key would meet only
    after 2**194 words.
    """
    words = np.empty((len(streams), count), np.uint64)
    bits = np.random.Philox(key=key, counter=0)
    start = bits.state  # setting it is cheaper than creating a generator per stream
    for row, stream in zip(words, streams, strict=True):
        start["state"]["counter"][3] = stream
        bits.state = start
        row[:] = bits.random_raw(count)
    return words


def k_smallest(keys: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.int64]:
    """Return the positions of the `count` smallest keys of the last axis, in ascending order of their keys.

    `[..., n] -> [..., count]`. With random keys it is a uniform draw without replacement, in random order; the
    first positions do not depend on `count`. The `count` smallest keys must differ.
    """
    *shape, n = keys.shape
    flat = keys.reshape(-1, n)  # [R, n]
    rows = np.arange(len(flat))[:, None]
    last = np.partition(flat, count - 1, axis=-1)[:, count - 1 : count]  # [R, 1]; faster than np.argpartition
    nearest = np.flatnonzero(flat <= last).reshape(-1, count) - n * rows  # [R, count], by position
    order = flat[rows, nearest].argsort(axis=-1)
    positions: npt.NDArray[np.int64] = nearest[rows, order].astype(np.int64, copy=False)
    return positions.reshape(*shape, count)

"""Dropout and the like, reproducible: random numbers of an iteration that depend on nothing before it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from metakm.data.rng import stream_key


@contextlib.contextmanager
def own_randomness(seed: int, iteration: int, device: torch.device) -> Iterator[None]:
    """Within the block, torch's generators start from the run's seed and the iteration; then they are as before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(stream_key("layers", seed, iteration) % 2**63)
        yield

"""Random numbers that depend on a seed alone, not on earlier draws: initial values, views, dropout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from metakm.data.rng import stream_key


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block, torch's CPU generator starts from `seed`; then it is as before. A GPU's is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs' generators too
        yield


@contextlib.contextmanager
def own_randomness(seed: int, iteration: int, device: torch.device, use: str = "layers") -> Iterator[None]:
    """Within the block, torch's generators start from the run's seed, the iteration and the use, then as before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(stream_key(use, seed, iteration) % 2**63)
        yield

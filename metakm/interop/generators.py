"""Other libraries' draws as a function of a seed: the global generators, set for the time of one draw."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def global_generators(key: int) -> Iterator[None]:
    """Set Python's, numpy's and torch's (CPU) global generators from a 128-bit key; restore them afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (the global one is meant)
    with torch.random.fork_rng(devices=[]):
        random.seed(key)
        np.random.seed([key >> shift & 0xFFFFFFFF for shift in (0, 32, 64, 96)])  # noqa: NPY002
        torch.default_generator.manual_seed(key % 2**63)  # torch.manual_seed would seed the GPUs' generators too
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002

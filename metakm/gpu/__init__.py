"""What a GPU has of its own: Triton kernels of our functions, and CUDA graphs of whole meta-gradients."""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor


def has_kernels(x: Tensor) -> bool:
    """Whether the kernels of `metakm.gpu` can take `x`: on a GPU, in float32 or bfloat16, with Triton there."""
    return x.is_cuda and x.dtype in (torch.float32, torch.bfloat16) and _triton_is_here()


@functools.cache
def _triton_is_here() -> bool:
    return importlib.util.find_spec("triton") is not None

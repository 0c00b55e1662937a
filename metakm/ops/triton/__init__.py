"""Triton kernels of the functions in `metakm.ops`, for NVIDIA GPUs from Ampere on."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor


def has_kernels(x: Tensor) -> bool:
    """Whether the Triton kernels support `x`: float32 or bfloat16, on an NVIDIA GPU from Ampere on, with Triton.

    METAKM_GPU_KERNELS=0 turns them off; PyTorch's own kernels are used instead.
    """
    return x.is_cuda and x.dtype in (torch.float32, torch.bfloat16) and _can_run(x.get_device())


@functools.cache
def _can_run(index: int) -> bool:
    if os.environ.get("METAKM_GPU_KERNELS") == "0" or importlib.util.find_spec("triton") is None:
        return False
    return torch.version.hip is None and torch.cuda.get_device_capability(index) >= (8, 0)

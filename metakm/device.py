"""What computes: the device, its precision, and the cores of this process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from metakm.config.protocol import Precision
from metakm.errors import UserError


def resolve_device(name: str) -> torch.device:
    """The device called `name`; `auto` is the first GPU, or the CPU.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("not a device that metakm is tested on")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"Expected --device to be auto, cpu, or cuda of this machine, got {name!r}") from error
    return device


def compute_dtype(precision: Precision) -> torch.dtype:
    """The precision of images and activations; parameters are always of the default one."""
    return torch.bfloat16 if precision == "bf16" else torch.get_default_dtype()


@contextlib.contextmanager
def float32_by_default() -> Iterator[None]:
    """Within the block, new tensors have 32 bits, whatever `torch.set_default_dtype` says outside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""The device that a run, a fit or a prediction computes on, and the cores of this process."""

from __future__ import annotations

import os

import torch

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


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

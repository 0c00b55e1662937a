"""The most memory that this process has held."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path
from typing import Literal

import torch

_CLEAR_REFS = Path("/proc/self/clear_refs")


def peak_memory_mb(device: torch.device) -> float:
    """Largest resident set of this process so far, or allocation on a GPU, in 10^6 bytes."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    peak = resident_bytes("VmHWM")  # on Linux, because getrusage starts at what the parent process had
    if peak is not None:
        return round(peak / 1e6, 1)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(kilobytes * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)


def resident_bytes(name: Literal["VmHWM", "VmRSS"]) -> int | None:
    """Of this process's resident set, at its peak (VmHWM) or now (VmRSS); None where Linux does not tell."""
    status = Path("/proc/self/status")
    if status.is_file() and f"{name}:" in (text := status.read_text()):
        return int(text.partition(f"{name}:")[2].split()[0]) * 1024
    return None


def reset_peak(device: torch.device) -> bool:
    """Begin to measure this process's peak memory anew; return whether the system can.

    Linux and CUDA can. What earlier work has freed is given back first, since it would still count.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR_REFS.write_text("5")
    except (OSError, AttributeError):
        return False
    return True

"""Where a number comes from: versions, commit, machine."""

from __future__ import annotations

import resource
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import torch


def now() -> str:
    """UTC to the second, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def git_commit() -> str:
    """Commit of metakm's own checkout, with `-dirty` if its files differ from it; empty outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "metakm")
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{commit}-dirty" if changed else commit


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


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


def device_name(device: torch.device, processes: int = 1) -> str:
    """`cpu`, or `cuda` with the card's name; with the number of processes, if several share the run."""
    name = f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
    return name if processes == 1 else f"{processes} x {name}"

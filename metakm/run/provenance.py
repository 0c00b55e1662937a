"""Where a number comes from: versions, commit, machine."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch

ORIGIN = ("device", "threads", "torch_version", "metakm_version", "git_commit")
_AND = " + "


def now() -> str:
    """UTC to the second, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def origin(device: torch.device, processes: int = 1) -> dict[str, str]:
    """The columns `ORIGIN` of a row, for what this process computes."""
    own = device_name(device, processes), str(torch.get_num_threads()), str(torch.__version__), version("metakm")
    return dict(zip(ORIGIN, (*own, git_commit()), strict=True))


def both(earlier: Mapping[str, str], later: Mapping[str, str]) -> dict[str, str]:
    """The `origin` of what was computed in two parts: `a + b` where they differ.

    Args:
        earlier: may lack columns, which are then taken to be the same.
    """
    return {name: _with(earlier.get(name, later[name]), later[name]) for name in ORIGIN}


def _with(known: str, text: str) -> str:
    parts = [part or "unknown" for part in known.split(_AND)]
    return known if (text or "unknown") in parts else _AND.join([*parts, text or "unknown"])


def mixed(origin: Mapping[str, str]) -> str:
    """The columns of an `origin` that name several; empty if there are none."""
    return ", ".join(f"{name} {text}" for name, text in origin.items() if _AND in text)


def git_commit() -> str:
    """Commit of metakm's own checkout, with `-dirty` if its files differ from it; empty outside a checkout.

    A new file counts, unless git ignores it.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=normal", "--", "metakm")
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{commit}-dirty" if changed else commit


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def device_name(device: torch.device, processes: int = 1) -> str:
    """`cpu`, or `cuda` with the card's name; with the number of processes, if several share the run."""
    name = f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
    return name if processes == 1 else f"{processes} x {name}"

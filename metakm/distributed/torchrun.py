"""What torchrun tells each process that it starts, by environment variables."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist


def from_torchrun(variable: str, default: int) -> int:
    """A number that torchrun has set; the default without torchrun."""
    return int(os.environ[variable]) if dist.is_torchelastic_launched() else default


@contextlib.contextmanager
def only_first_prints() -> Iterator[None]:
    """Within the block other processes than number 0 print nothing. An exception that leaves it is printed by all."""
    if from_torchrun("RANK", 0) == 0:
        yield
        return
    with (
        open(os.devnull, "w") as nothing,  # noqa: PTH123 (not a path of ours)
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
    ):
        yield


def print_anyway(line: str) -> None:
    """Print to standard error, in a process that is not to print as well."""
    if sys.__stderr__ is not None:
        with contextlib.suppress(OSError, ValueError):  # closed
            print(line, file=sys.__stderr__, flush=True)


def local_device(name: str) -> str:
    """The device of this process where `--device` is `name`: of several processes on GPUs each has its own."""
    several_gpus = from_torchrun("LOCAL_WORLD_SIZE", 1) > 1 and torch.cuda.is_available()
    return f"cuda:{from_torchrun('LOCAL_RANK', 0)}" if several_gpus and name in ("auto", "cuda") else name


def processes_here() -> int:
    """How many processes of the run share this machine's memory."""
    return from_torchrun("LOCAL_WORLD_SIZE", 1)


def restarts() -> bool:
    """Whether torchrun was told to start processes that fail again."""
    return from_torchrun("TORCHELASTIC_MAX_RESTARTS", 0) > 0


def restarts_left() -> bool:
    """Whether torchrun will start the processes again when they fail."""
    return from_torchrun("TORCHELASTIC_RESTART_COUNT", 0) < from_torchrun("TORCHELASTIC_MAX_RESTARTS", 0)

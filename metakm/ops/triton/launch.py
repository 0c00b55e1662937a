"""What all Triton launches share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NUM_SMS = 132  # of a large GPU; a launch should have about as many programs, or more


def launch(kernel: Any, grid: tuple[int, ...], first: Tensor, *arguments: Any, **constants: Any) -> None:
    """Run `grid` programs of a kernel on the GPU that its first argument is on, which need not be the current one."""
    with torch.cuda.device_of(first):  # type: ignore[no-untyped-call]
        kernel[grid](first, *arguments, **constants)


def channels_last(x: Tensor) -> Tensor:
    """`x` with its channels innermost in memory; itself if they already are, ignoring axes of size 1."""
    return x.contiguous(memory_format=torch.channels_last)

"""What all Triton launches share."""

from __future__ import annotations

import torch
from torch import Tensor

PROCESSORS = 132  # of a large GPU; a launch should have about as many programs or more


def channels_last(x: Tensor) -> Tensor:
    """`x` with its channels innermost in memory; itself if it has them there."""
    return x.contiguous(memory_format=torch.channels_last)

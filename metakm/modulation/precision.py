"""Half precision for the tensors of a pack, in its file: half the bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

PackPrecision = Literal["full", "fp16"]

_WIDER = {"float32": torch.float32, "float64": torch.float64}
_KINDS = {"float16": torch.float16, **_WIDER}
LARGEST_ERROR = 2.0**-10
"""Of a tensor in half precision, as a share of its largest value; float16 itself errs by 2^-11 in its normal range."""


def to_half(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors with those in float16 that float16 can hold, and the former precision of what is then in float16.

    The latter is by name; under the empty name is that of all tensors that are not named. Other tensors stay as they
    are: integers, and those with values beyond float16's range, or all below it.
    """
    stored, former = dict(tensors), {}
    for name, tensor in tensors.items():
        half = tensor.to(torch.float16)
        if tensor.dtype in _WIDER.values() and _close(half, tensor):
            stored[name] = half
        if stored[name].dtype == torch.float16:
            former[name] = str(tensor.dtype).removeprefix("torch.")
    if not former:
        return stored, {}
    usual = Counter(former.values()).most_common(1)[0][0]
    return stored, {"": usual, **{name: kind for name, kind in former.items() if kind != usual}}


def from_half(stored: Mapping[str, Tensor], former: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors in their former precision, with the values that float16 left them."""
    found = dict(stored)
    for name, tensor in stored.items():
        if former and tensor.dtype == torch.float16:
            found[name] = tensor.to(_KINDS[former.get(name, former[""])])
    return found


def rounded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What comes back of tensors that were stored in half precision."""
    return from_half(*to_half(tensors))


def _close(half: Tensor, tensor: Tensor) -> bool:
    if not tensor.numel():
        return True
    error = (half.to(tensor.dtype) - tensor).abs().max()
    return bool(error <= LARGEST_ERROR * tensor.abs().max())  # False where either is not finite

"""W~ of a modulated layer is kept between calls in evaluation, as long as what it is computed from stays the same.

Only of metakm's own modulators, on the CPU, in evaluation mode, without gradients; elsewhere W~ is computed in every
call. What is kept takes the memory of W once more. It is dropped by the first call in training mode or with gradients,
and computed anew once W is replaced or written to (as counted by PyTorch, which misses writes through `.data`) or a
tensor of the modulator has other values than before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class _Kept(NamedTuple):
    """W~, and what it was computed from: an alias of W, which keeps its address taken, and copies of the rest."""

    modulated: Tensor
    modulated_version: int | None  # None for an inference tensor, which has none
    original: Tensor
    version: int
    modulator: list[Tensor]


class CachedParametrization(parametrize.ParametrizationList):
    """The parametrization of a modulated weight, see the module."""

    _kept: _Kept | None = None

    def forward(self) -> Tensor:
        """W~, `[O, C, kh, kw]`."""
        if not self._may_keep():
            self._kept = None
            return super().forward()
        kept = self._kept  # once: another thread may drop it
        if kept is None or not self._is_current(kept):
            copies = [tensor.clone() for tensor in self._modulator_tensors()]
            original = self.original
            modulated = super().forward()
            kept = self._kept = _Kept(modulated, _version(modulated), original.detach(), original._version, copies)
        return kept.modulated

    def _may_keep(self) -> bool:
        original = self.original
        return not (
            torch.compiler.is_compiling()  # first: the compiler cannot look into what follows
            or self.training
            or len(self) != 1  # another parametrization after the modulator
            or not type(self[0]).__module__.startswith("metakm.")  # one that may depend on more than its tensors
            or torch.is_grad_enabled()
            or torch.is_autocast_enabled("cpu")  # whose W~ is rounded
            or original.device.type != "cpu"
            or original.is_inference()  # such tensors do not count what is written to them
            or torch._C._get_tracing_state() is not None
            or torch._C._functorch.maybe_current_level() is not None
        )

    def _is_current(self, kept: _Kept) -> bool:
        original = self.original
        if original.data_ptr() != kept.original.data_ptr() or original._version != kept.version:
            return False
        if _version(kept.modulated) != kept.modulated_version:
            return False
        tensors = list(self._modulator_tensors())
        return len(tensors) == len(kept.modulator) and all(map(_equal, tensors, kept.modulator))

    def _modulator_tensors(self) -> Iterator[Tensor]:
        return _tensors(self[0])

    def __getstate__(self) -> dict[str, Any]:
        """Without what is kept: copies and files have no use for it."""
        return {**self.__dict__, "_kept": None}


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers; four times as fast as `parameters()` and `buffers()`, which look for shared ones."""
    for held in (module._parameters, module._buffers):
        yield from (tensor for tensor in held.values() if tensor is not None)
    for child in module._modules.values():
        if child is not None:
            yield from _tensors(child)


def _equal(here: Tensor, before: Tensor) -> bool:
    return here.shape == before.shape and here.dtype == before.dtype and torch.equal(here, before)

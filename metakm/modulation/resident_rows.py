"""Which rows of a batch belong to which task, for the layers of `metakm.modulation.resident_packs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metakm.errors import UserError

MODULATOR = "modulator."
ABSENT = float("-inf")  # the logit of a class that a task does not have
ALIGNED = 16  # bytes


class Place(NamedTuple):
    """Where a tensor is in a task's bytes."""

    start: int
    stop: int
    dtype: torch.dtype
    shape: torch.Size


@dataclass(frozen=True)
class ResidentTask:
    """One task beside the base.

    Attributes:
        data: all its tensors in one piece, as bytes; a hundred tensor objects a task would weigh more than many a task.
        places: by the layer's name and the tensor's name in the layer; a modulator's are `modulator.<name>`.
        modulators: by the layer's name, shared by all tasks of the same arguments of `modulate`; their own tensors are
            never used.
        classes: names of the classes; empty where unknown.
        kind: equal for tasks whose places are the same up to `common` bytes, where the classifier begins.
    """

    data: Tensor
    places: Mapping[str, Mapping[str, Place]]
    modulators: Mapping[str, nn.Module]
    classes: tuple[str, ...]
    kind: str
    common: int

    def views(self, layer: str) -> dict[str, Tensor]:
        """All tensors of a layer."""
        return {name: self._view(place) for name, place in self.places.get(layer, {}).items()}

    def tensors(self, layer: str) -> dict[str, Tensor]:
        """The layer's own tensors, without its modulator's."""
        return {name: t for name, t in self.views(layer).items() if not name.startswith(MODULATOR)}

    def modulator_tensors(self, layer: str) -> dict[str, Tensor]:
        """The tensors of the layer's modulator."""
        found = self.views(layer).items()
        return {name.removeprefix(MODULATOR): t for name, t in found if name.startswith(MODULATOR)}

    def _view(self, place: Place) -> Tensor:
        return self.data[place.start : place.stop].view(place.dtype).view(place.shape)


def pack_tensors(tensors: Mapping[str, Mapping[str, Tensor]]) -> tuple[Tensor, Mapping[str, Mapping[str, Place]]]:
    """The tensors of all layers in one piece, in their order, and their places."""
    parts: list[Tensor] = []
    places: dict[str, dict[str, Place]] = {}
    length = 0
    for layer, own in tensors.items():
        for name, tensor in own.items():
            raw = tensor.detach().contiguous().view(-1).view(torch.uint8)
            places.setdefault(layer, {})[name] = Place(length, length + len(raw), tensor.dtype, tensor.shape)
            parts += [raw, raw.new_zeros(-len(raw) % ALIGNED)]
            length += len(raw) + len(parts[-1])
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8), places


@dataclass(frozen=True)
class ResidentRows:
    """The tasks of a batch and how many rows each has; the rows of a task stand together, in the order of the tasks."""

    tasks: tuple[ResidentTask, ...]
    counts: tuple[int, ...]
    outputs: list[int] = field(default_factory=list)  # of each task's classifier, once it has run, if these differ

    def joined(self, outputs: list[Tensor]) -> Tensor:
        """Outputs `[n_t, O_t, ...]` of the tasks as `[n, most outputs, ...]`, filled up with minus infinity.

        Raises:
            UserError: outputs that differ in another axis.
        """
        if len({output.shape[2:] for output in outputs}) > 1:
            listed = " and ".join(sorted({str(list(output.shape[1:])) for output in outputs}))
            raise UserError(
                f"Expected outputs that differ in the first axis after the images, got {listed}; swap() task after task"
            )
        most = max(output.shape[1] for output in outputs)
        if all(output.shape[1] == most for output in outputs):
            return torch.cat(outputs)
        self.outputs[:] = [output.shape[1] for output in outputs]
        return torch.cat([F.pad(o, [*[0, 0] * (o.dim() - 2), 0, most - o.shape[1]], value=ABSENT) for o in outputs])

    def without_absent(self, logits: Tensor) -> Tensor:
        """Logits `[n, most classes]`, those of classes that a task lacks minus infinity whatever came after them."""
        if not self.outputs or logits.shape[1:] != (max(self.outputs),):
            return logits
        own = self.repeat_for_rows(torch.tensor(self.outputs, device=logits.device))  # [n]
        return logits.masked_fill(torch.arange(logits.shape[1], device=logits.device) >= own[:, None], ABSENT)

    @property
    def total(self) -> int:
        """Rows in all."""
        return sum(self.counts)

    @property
    def each(self) -> int | None:
        """Rows of each task, if that is one number."""
        return self.counts[0] if len(set(self.counts)) == 1 else None

    def slices(self, width: int = 1) -> list[slice]:
        """Where the rows of each task are, if each row takes `width` places."""
        stops = [width * sum(self.counts[: i + 1]) for i in range(len(self.counts))]
        return [slice(stop - width * n, stop) for stop, n in zip(stops, self.counts, strict=True)]

    def stacked(self, layer: str, names: Sequence[str], base: Mapping[str, Tensor]) -> list[Tensor]:
        """Tensors of a layer for each task, `[T, ...]`; those of `base` where a task has none.

        Not for the classifier's, whose shapes may differ.
        """
        if self._common is None:
            own = [task.views(layer) for task in self.tasks]
            return [torch.stack([each[name] if name in each else base[name] for each in own]) for name in names]
        places = self.tasks[0].places.get(layer, {})
        return [
            self._of_all(places[name]) if name in places else base[name].expand(len(self.tasks), *base[name].shape)
            for name in names
        ]

    def _of_all(self, place: Place) -> Tensor:
        assert self._common is not None
        return self._common[:, place.start : place.stop].view(place.dtype).view(-1, *place.shape)

    @cached_property
    def _common(self) -> Tensor | None:
        """What the tasks have in the same places, `[T, bytes]`, copied once a batch: views cost more than bytes."""
        if len({task.kind for task in self.tasks}) != 1:
            return None
        return torch.stack([task.data[: task.common] for task in self.tasks])

    def repeat_for_rows(self, values: Tensor) -> Tensor:
        """`[T, ...]`, one for each task, to `[n, ...]`, one for each row."""
        if self.each == 1:
            return values
        return values.repeat_interleave(torch.tensor(self.counts, device=values.device), dim=0)


current_rows: ContextVar[ResidentRows] = ContextVar("current_rows")

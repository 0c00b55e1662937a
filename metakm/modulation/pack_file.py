"""A task pack: one task's tensors in one safetensors file, for a base network that stays on the device.

Its header, under the metadata's key `metakm`, has the base's fingerprint, the task, its classes, metrics and the
arguments of `modulate`; see `metakm.io.tensor_file`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from metakm.data.labels import as_text, plain_label
from metakm.errors import UserError
from metakm.io.files import atomic_write, expanded
from metakm.io.tensor_file import TensorFile
from metakm.modulation.precision import PackPrecision, from_half, to_half

_FILE = TensorFile("pack", key="metakm", version=1, source="metakm fit and save_pack() write them")


@dataclass(frozen=True, eq=False)
class Pack:
    """One task, in memory.

    Attributes:
        tensors: the task's tensors, on the CPU, under the names of `metakm.modulation.partition`.
        base: fingerprint of the base network that they belong to.
        task: its name.
        classes: names of the classes in the order of the logits; empty if unknown.
        metrics: such as `{"accuracy": 0.91}`.
        modulation: the arguments of `modulate`, with the modulated layers' names and the modulator's class name.
        photos: what `metakm fit` adds, so that photographs can be classified: the base's name, preprocessing and
            calibration; empty for other packs.
        meta_trained: what a run adds, so that the pack is a base for others: see `metakm.modulation.base_pack`.
        precision: of the tensors in the file. In memory they always have the model's.
    """

    tensors: dict[str, Tensor] = field(repr=False)
    base: str
    task: str
    classes: tuple[str, ...]
    metrics: dict[str, float]
    modulation: dict[str, Any]
    photos: dict[str, Any] = field(default_factory=dict)
    precision: PackPrecision = "full"
    meta_trained: dict[str, Any] = field(default_factory=dict)

    def header(self) -> dict[str, Any]:
        """What the file holds in addition to the tensors."""
        added = {"photos": self.photos, "meta_trained": self.meta_trained}
        return {
            **{name: values for name, values in added.items() if values},
            "base": self.base,
            "task": self.task,
            "classes": list(class_names(self.classes)),
            "metrics": {name: float(value) for name, value in self.metrics.items()},
            "modulation": self.modulation,
        }


def class_names(classes: Iterable[Any]) -> tuple[str, ...]:
    """Names, or numbers of classes, from a list, an array or a column of a table, as text.

    Raises:
        UserError: one string instead of several.
    """
    if isinstance(classes, str | bytes):
        raise UserError(f"Expected a list of class names, got {classes!r:.50}; put it into a list")
    return tuple(as_text(plain_label(name)) for name in classes)


def write_pack(pack: Pack, path: Path | str) -> None:
    """Write `pack` as one file; `path` is replaced completely or left as it was."""
    header, tensors = pack.header(), pack.tensors
    if pack.precision == "fp16":
        tensors, former = to_half(tensors)
        header["halved"] = former
    data = _FILE.to_bytes(header, tensors)
    with atomic_write(expanded(path, "the pack's path")) as file:
        file.write(data)


def read_pack(path: Path | str) -> Pack:
    """Read a pack, without a model.

    Raises:
        UserError: no such file; one that is truncated, damaged, changed since it was written, not a pack, or of
            another format version.
    """
    header, tensors = _FILE.read(path)
    modulation = {"start": "paper", "statistics": "task", **header["modulation"]}  # of packs from before there was more
    return Pack(
        from_half(tensors, header.get("halved", {})), header["base"], header["task"], tuple(header["classes"]),
        header["metrics"], modulation, header.get("photos", {}), "fp16" if "halved" in header else "full",
        header.get("meta_trained", {}),
    )  # fmt: skip

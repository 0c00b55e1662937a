"""A task pack: one task's tensors in one safetensors file, for a base network that stays on the device.

The file's metadata hold, under the key `metakm`, a JSON object: the format's version, the base's fingerprint, the task,
its classes, metrics, the arguments of `modulate`, and a SHA-256 of all that and the tensors. It guards against damage
and careless edits; it is no signature.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from metakm.errors import UserError
from metakm.files import replacing
from metakm.modulation import tensors as parts

FORMAT = 1

_KEY = "metakm"


@dataclass(frozen=True)
class Pack:
    """One task, in memory.

    Attributes:
        tensors: the task's tensors, on the CPU, under the names of `metakm.modulation.tensors`.
        base: fingerprint of the base network that they belong to.
        task: its name.
        classes: names of the classes in the order of the logits; empty where unknown.
        metrics: such as `{"accuracy": 0.91}`.
        modulation: the arguments of `modulate`, with the modulated layers' names and the modulator's class name.
    """

    tensors: dict[str, Tensor]
    base: str
    task: str
    classes: tuple[str, ...]
    metrics: dict[str, float]
    modulation: dict[str, Any]

    def header(self) -> dict[str, Any]:
        """What the file says beside the tensors, but for the digest."""
        return {
            "format": FORMAT,
            "base": self.base,
            "task": self.task,
            "classes": list(self.classes),
            "metrics": self.metrics,
            "modulation": self.modulation,
        }


def write_pack(pack: Pack, path: Path | str) -> None:
    """Write `pack` as one file; `path` is replaced whole or left as it was."""
    header = pack.header()
    metadata = {_KEY: json.dumps({**header, "digest": _digest(header, pack.tensors)}, sort_keys=True)}
    with replacing(Path(path)) as file:
        file.write(safetensors.torch.save(pack.tensors, metadata))


def read_pack(path: Path | str) -> Pack:
    """Read a pack, without a model.

    Raises:
        UserError: no such file; one that is truncated, damaged, changed since it was written, not a pack, or of
            another format version.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError as error:
        raise UserError(f"Expected a pack, got no file {path}; save_pack() writes one") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"Expected a pack, got a truncated or foreign file {path} ({error}); copy it again") from error
    if _KEY not in metadata:
        raise UserError(f"Expected a pack, got a safetensors file without metakm's header: {path}; use save_pack()")
    try:
        header = json.loads(metadata[_KEY])
        version, digest = header["format"], header.pop("digest")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"Expected a pack's header, got a damaged one in {path}; copy the file again") from error
    if version != FORMAT:
        raise UserError(f"Expected pack format {FORMAT}, got {version!r} in {path}; read it with its metakm version")
    if digest != _digest(header, tensors):
        raise UserError(f"Expected a pack as it was written, got a changed header or tensor in {path}; copy it again")
    return Pack(
        tensors, header["base"], header["task"], tuple(header["classes"]), header["metrics"], header["modulation"]
    )


def _digest(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    parts.update(digest, tensors)
    return digest.hexdigest()

"""Tensors in one safetensors file, with a header that protects them.

The header is a JSON object in the file's metadata: the format's version, what the writer says, and a SHA-256 of both
and of the tensors. It detects damage and careless edits; it is not a signature.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from metakm.errors import UserError
from metakm.io.files import expanded


class TensorFile(NamedTuple):
    """One kind of these files.

    name: its name in messages.
    key: of the header in the metadata.
    version: of its format.
    source: how to make one, for messages.
    """

    name: str
    key: str
    version: int
    source: str

    def to_bytes(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
        """The content of the file. No two tensors may share memory.

        Args:
            header: JSON values; `format` and `digest` are added.

        Raises:
            UserError: tensors that the format does not support, such as sparse ones.
        """
        full = {"format": self.version, **header}
        try:
            plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
            metadata = {self.key: json.dumps({**full, "digest": _digest(full, plain)}, sort_keys=True)}
            return safetensors.torch.save(plain, metadata)
        except (safetensors.SafetensorError, RuntimeError, ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"Expected tensors that a safetensors file can hold, got {error}; make them dense"
            ) from error

    def read(self, path: Path | str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Header, without the digest, and tensors, on the CPU.

        Raises:
            UserError: no such file, or a folder; one that is truncated, damaged, changed since it was written, of
                another kind, or of another format version.
        """
        a, path = f"Expected a {self.name}", expanded(path, f"the {self.name}'s path")
        if path.is_dir():
            raise UserError(f"{a}, got the folder {path}; name the file in it")
        try:
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
        except FileNotFoundError as error:
            raise UserError(f"{a}, got no file {path}; {self.source}") from error
        except (safetensors.SafetensorError, OSError, AttributeError) as error:  # the last: a precision torch lacks
            raise UserError(f"{a}, got a truncated or foreign file {path} ({error}); copy it again") from error
        if self.key not in metadata:
            raise UserError(f"{a}, got a safetensors file without metakm's header: {path}; {self.source}")
        try:
            header: dict[str, Any] = json.loads(metadata[self.key])
            version, digest = header["format"], header.pop("digest")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{a}'s header, got a damaged one in {path}; copy the file again") from error
        if version != self.version:
            raise UserError(
                f"Expected {self.name} format {self.version}, got {version!r:.9} in {path}; read it with its metakm "
                "version"
            )
        if digest != _digest(header, tensors):
            raise UserError(f"{a} as it was written, got a changed header or tensor in {path}; copy it again")
        return header, tensors


def update_digest(digest: hashlib._Hash, tensors: Mapping[str, Tensor]) -> None:
    """Update `digest` with named tensors, in order of their names, each with its precision and shape."""
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        plain = tensor.detach().cpu().contiguous()
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)


def fingerprint_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors, in hexadecimal."""
    digest = hashlib.sha256()
    update_digest(digest, tensors)
    return digest.hexdigest()


def _digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    update_digest(digest, tensors)
    return digest.hexdigest()

"""The user's Python files that a run is made from: its plugins, and the file of its network."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from metakm.config import RunConfig
from metakm.errors import UserError
from metakm.io.files import expanded


def file_hashes(config: RunConfig) -> dict[str, str]:
    """The SHA-256 of each file, by its name without its folder, which may be another when a run is resumed.

    Of files with one name it is that of all, one after the other.
    """
    network = config.backbone.rpartition(":")[0]
    paths = [*config.plugin, *([Path(network)] if network.endswith(".py") else [])]
    files = [path for path in (expanded(path, "file") for path in paths) if path.is_file()]  # others are refused later
    contents: dict[str, bytes] = {}
    for path in files:
        contents[path.name] = contents.get(path.name, b"") + path.read_bytes()
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def require_same_files(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse files that were edited.

    Raises:
        UserError: names the first.
    """
    for name, digest in now.items():
        if before.get(name, digest) != digest:
            raise UserError(
                f"Expected {name} as it was when the run began (SHA-256 {before[name][:16]}), got an edited file "
                f"({digest[:16]}); restore it, or start again with --overwrite"
            )

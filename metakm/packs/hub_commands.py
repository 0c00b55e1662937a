"""`python -m metakm.packs push` and `pull`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from metakm.packs.hub import pull, push


@dataclass(frozen=True)
class Push:
    """Put a pack into a folder, or a repository of the Hugging Face Hub, with a model card.

    The files are pack.safetensors, config.json and README.md.
    """

    file: tyro.conf.Positional[Path]
    """A file that metakm fit or save_pack() wrote."""
    to: tyro.conf.Positional[str]
    """A folder, or hf://OWNER/NAME."""
    private: bool = False
    """Make a new repository private."""
    replace_card: bool = False
    """Replace an existing README.md."""

    def __call__(self) -> str:
        """The text to print."""
        return f"pushed to {push(self.file, self.to, self.private, self.replace_card)}"


@dataclass(frozen=True)
class Pull:
    """Download a pack from a folder or repository that push wrote."""

    source: tyro.conf.Positional[str]
    """A folder, or hf://OWNER/NAME, or hf://OWNER/NAME@REVISION."""
    file: tyro.conf.Positional[Path]
    """Where to write the pack."""

    def __call__(self) -> str:
        """The text to print."""
        pack = pull(self.source, self.file)
        return f"{self.file}: task {pack.task or '(not named)'}, {len(pack.tensors)} tensors"

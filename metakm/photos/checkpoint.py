"""The checkpoint of a fit that was stopped: the results of its finished parts, and the state of the current one."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import torch

from metakm.errors import UserError
from metakm.io.files import atomic_write

EVERY = 20.0  # seconds
_DAMAGED = (OSError, RuntimeError, ValueError, LookupError, EOFError, AttributeError, TypeError)


class Checkpoint:
    """One file beside the pack; it is removed when the pack is written.

    Args:
        path: None for none, as in Python without a place to save to.
        key: of the photos, settings and base; a file of others is refused.
        resume: go on from the file, if there is one; otherwise it is written over.

    Attributes:
        done: results by the name of a part.
        current: name and state of the part at work.
    """

    def __init__(self, path: Path | None, key: str, *, resume: bool) -> None:
        self.path, self.key = path, key
        self.done: dict[str, Any] = {}
        self.current: tuple[str, Any] | None = None
        self._began = self._saved = time.monotonic()
        if resume and path is not None and path.is_file():
            self._read(path)

    @property
    def seconds(self) -> float:
        """Time of the fit so far, over all sessions."""
        return time.monotonic() - self._began

    def finish(self, name: str, result: Any) -> None:
        """Keep the result of a part, of tensors and plain values."""
        self.done[name], self.current = result, None
        self.save()

    def update(self, name: str, trainer: Any, *, now: bool = False) -> None:
        """Keep the state of the part at work, if the last time is long ago."""
        if now or time.monotonic() - self._saved >= EVERY:
            self.current = name, trainer.state_dict()
            self.save()

    def save(self) -> None:
        """Write the file."""
        self._saved = time.monotonic()
        if self.path is None:
            return
        buffer = io.BytesIO()
        state = {"key": self.key, "done": self.done, "current": self.current, "seconds": self.seconds}
        torch.save(state, buffer)
        with atomic_write(self.path) as file:
            file.write(buffer.getvalue())

    def _read(self, path: Path) -> None:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
            key, done, current, seconds = (found[name] for name in ("key", "done", "current", "seconds"))
        except _DAMAGED as error:
            raise UserError(
                f"Expected a checkpoint, got a damaged one in {path}; start again without --resume"
            ) from error
        if key != self.key:
            raise UserError(
                f"Expected the checkpoint of the same photos, settings and base, got another in {path}; start again "
                "without --resume"
            )
        self.done, self.current = done, current
        self._began -= seconds

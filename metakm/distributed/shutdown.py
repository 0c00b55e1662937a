"""What a process does before it exits because another one is lost."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from metakm.distributed.rendezvous import Rendezvous
from metakm.distributed.torchrun import print_anyway, restarts_left
from metakm.distributed.watchdog import LostProcess


class ShutdownHandler:
    """Reports which process was lost and what to do, once on each host, tells torchrun, and calls `write`.

    Args:
        again: what the user should do if torchrun does not restart the processes.
    """

    def __init__(self, rank: int, rendezvous: Rendezvous, again: str) -> None:
        self.write: Callable[[], object] = lambda: None
        self._rank, self._rendezvous, self._again = rank, rendezvous, again

    def __call__(self, loss: LostProcess) -> None:
        """Do all of it; `write` may be slow."""
        hosts, nodes = self._rendezvous.hosts, self._rendezvous.nodes
        again = "torchrun restarts the run from its last checkpoint" if restarts_left() else self._again
        line = f"error: lost process {loss.rank} on {hosts[loss.rank]} ({loss.how}); {again}"
        left = (rank for rank, node in enumerate(nodes) if node == nodes[self._rank] and rank != loss.rank)
        if self._rank == next(left):
            print_anyway(line)
        _tell_torchrun(line)
        self.write()


def _tell_torchrun(line: str) -> None:
    """For the report that torchrun prints of a process that failed."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        said = {"message": line, "extraInfo": {"py_callstack": line, "timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError):
            Path(file).write_text(json.dumps({"message": said}), encoding="utf-8")

"""Kill a run at random moments, resume it, and so on: `python benchmarks/kill_chain.py`.

One run goes through unbroken. The other is killed with SIGKILL 20 times (`--kills`), while it starts, trains, validates
or writes, and resumed each time. Both must end with the same checkpoint, bit for bit (wall-clock times apart), the same
accuracy of every meta-test task, and the same files. Exit code 0 if so.

Each attempt is a process of its own; it is forked from this one, which has imported torch but computed nothing, to save
the seconds of the import.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch and numpy are imported: a process with threads is not forked

import random
import select
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

import matplotlib.figure  # noqa: F401  (these two are what a run imports late, and slowly)
import torch
import torch._dynamo
import tyro

from metakm.run.__main__ import main as run

SMALL = "--ways 3 --queries 2 --backbone conv4-4-stride --meta-batch 2 --val-tasks 2 --eval-tasks 4 --device cpu"
TIMES = {"train_seconds", "step_seconds", "started_at"}
STEP = 3  # iterations that an attempt may gain, at most one more


def main(kills: int = 20, seed: int = 1, algo: str = "km") -> int:
    """Compare a run that was killed with one that was not.

    Args:
        kills: how often.
        seed: of the moments.
        algo: strategy.
    """
    moments = random.Random(seed)
    iterations = kills * (STEP + 1) + 2  # so that no attempt but the last comes to the end
    with tempfile.TemporaryDirectory() as folder:
        flags = f"{SMALL} --algo {algo} --iterations {iterations} --val-every 1 --out".split()
        whole, broken = Path(folder, "whole"), Path(folder, "broken")
        began = time.monotonic()
        process = Attempt([*flags, str(whole)])
        process.wait_for_lines(1, None)
        start_up = time.monotonic() - began
        process.finish()
        for kill in range(kills):
            process = Attempt([*flags, str(broken), "--resume"])
            lines = moments.randint(0, STEP)
            process.wait_for_lines(lines or 1, None if lines else moments.uniform(0, start_up))
            time.sleep(moments.uniform(0, 0.02))
            process.kill()
            print(f"kill {kill + 1}: {process.last_line or 'while it started'}", flush=True)
        Attempt([*flags, str(broken), "--resume"]).finish()
        differences = list(compare(whole, broken))
    print("\n".join(differences) or f"{kills} kills: the same checkpoint, accuracies and files as the unbroken run")
    return 1 if differences else 0


class Attempt:
    """`python -m metakm.run` in a forked process, its standard error in a pipe."""

    def __init__(self, arguments: list[str]) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(writing, 2)
            code = 70
            try:
                code = run(arguments)
            finally:
                os._exit(code)
        os.close(writing)
        self.errors = reading
        self.text = b""

    @property
    def last_line(self) -> str:
        """The last thing said."""
        return self.text.decode().rstrip().rpartition("\n")[2].strip()

    def wait_for_lines(self, count: int, seconds: float | None) -> None:
        """Until `count` validations are reported, or for so many seconds, whichever comes first."""
        end = None if seconds is None else time.monotonic() + seconds
        while self.text.count(b"\niteration ") < count:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not select.select([self.errors], [], [], left)[0]:
                return
            if not (block := os.read(self.errors, 1 << 16)):
                self.fail("killed", "the end of it")
            self.text += block

    def kill(self) -> None:
        """SIGKILL, which no process can delay."""
        os.kill(self.pid, signal.SIGKILL)
        if not os.WIFSIGNALED(self.end()):
            self.fail("killed", "the end of it")

    def finish(self) -> None:
        """Until it ends well."""
        if status := self.end():
            self.fail("finished", f"status {status}")

    def end(self) -> int:
        """Read all that it says, then give its status."""
        while block := os.read(self.errors, 1 << 16):
            self.text += block
        os.close(self.errors)
        return os.waitpid(self.pid, 0)[1]

    def fail(self, wanted: str, got: str) -> NoReturn:
        """Stop the whole."""
        sys.exit(f"error: expected a run to be {wanted}, got {got}:\n{self.text.decode()}")


def compare(whole: Path, broken: Path) -> list[str]:
    """What differs between the folders of two runs."""
    a, b = (sorted(out.rglob("checkpoint.pt"))[0].parent for out in (whole, broken))
    found = []
    names = [sorted(path.name for path in folder.iterdir()) for folder in (a, b)]
    if names[0] != names[1]:
        found.append(f"files: {names[0]} and {names[1]}")
    if (a / "tasks.csv").read_bytes() != (b / "tasks.csv").read_bytes():
        found.append("tasks.csv")
    states = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (a, b)]
    for state in states:
        state["curve"] = [point[:-1] for point in state["curve"]]  # without its seconds
    flat = [dict(leaves(state)) for state in states]
    found += [f"checkpoint: {key}" for key in sorted({*flat[0]} ^ {*flat[1]})]
    found += [
        f"checkpoint: {key}" for key, value in flat[0].items() if key in flat[1] and not same(value, flat[1][key])
    ]
    return found


def leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Tensors, numbers and texts of a checkpoint under their paths; wall-clock times left out."""
    if isinstance(value, dict):
        items = [(key, item) for key, item in value.items() if key not in TIMES]
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        return [(path, value)]
    return [leaf for key, item in items for leaf in leaves(item, f"{path}/{key}")]


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit."""
    return bool(torch.equal(a, b)) if isinstance(a, torch.Tensor) else type(a) is type(b) and a == b


if __name__ == "__main__":
    sys.exit(tyro.cli(main))

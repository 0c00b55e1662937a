"""Kill a process at every line of `metakm/io/files.py` while it replaces each file of a run, and look at what is left.

A program of its own (see test_faults.py), because a process with threads, as a test's is, should not be forked. Prints
one line for each file: its name and how many kills it survived.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import signal
import sys
from pathlib import Path

import numpy as np
import torch

import metakm.run.folder
from metakm.io import files
from metakm.presets import preset_config
from metakm.run.checkpoint import save_checkpoint
from metakm.run.curve import CurvePoint
from metakm.run.folder import RunFolder

CONFIG = preset_config()


def curve(version):
    return [CurvePoint(i, None, None, 0.5 + 0.1 * version, 1.0) for i in range(2)]


def writers(folder):
    """Each file of a run with a function that writes its version 0 or 1. (result.csv is written as config.json is.)"""
    run = RunFolder(folder)
    pictures = [metakm.run.curve.curve_png(curve(version), "title") for version in (0, 1)]  # slow to draw
    metakm.run.folder.curve_png = lambda points, *_: pictures[points == curve(1)]

    def checkpoint(version):
        save_checkpoint(run.checkpoint, CONFIG, {"weights": torch.full((50_000,), float(version))})

    return {
        "config.json": lambda version: run.write_config({"version": version}),
        "curve.csv": lambda version: run.write_curve(curve(version)),
        "curve.png": lambda version: run.write_picture(curve(version), "title"),
        "tasks.csv": lambda version: run.write_tasks(np.full(100, float(version))),
        "weights.safetensors": lambda version: run.write_weights(bytes([version]) * 200_000),
        "checkpoint.pt": checkpoint,
    }


def killed_at(line, write):
    """Whether a child that dies before the given line event of files.py died; else it ended well."""
    child = os.fork()
    if child == 0:
        seen = 0

        def trace(frame, event, _):
            nonlocal seen
            if frame.f_code.co_filename != files.__file__:
                return None
            if event == "line":
                if seen == line:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1
            return trace

        sys.settrace(trace)
        write()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and status != 0:
        sys.exit(f"a writer failed at line event {line}")
    return os.WIFSIGNALED(status)


def main(folder):
    for name, write in writers(folder).items():
        path = folder / name
        write(1)
        new = path.read_bytes()
        write(0)
        old = path.read_bytes()
        if old == new:
            sys.exit(f"{name}: the two versions do not differ")
        line, replaced = 0, 0
        while killed_at(line, lambda write=write: write(1)):
            left = path.read_bytes()
            if left not in (old, new):
                sys.exit(f"{name}: killed at line event {line}, got neither the old nor the new file")
            replaced += left == new
            line += 1
        write(0)
        others = sorted(p.name for p in folder.iterdir() if p.name.startswith("."))
        if others:
            sys.exit(f"{name}: the next write left {others}")
        print(name, line, replaced)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))

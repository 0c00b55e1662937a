"""Resident memory, file handles and threads over hours of whole runs: `python benchmarks/soak.py --minutes 120`.

One process does one run after another through the main command (meta-training, meta-validation, checkpoints,
TensorBoard files, meta-test, pictures), with each strategy in turn, in a folder that is removed after each. After each
run, and a garbage collection, it samples the memory that glibc has given out and not got back, the resident set, open
file handles and threads. Flat means that after the first tenth of the runs (one of each strategy at least) the peak is
above the peak until then by at most 2 % for memory in use, 10 % for the resident set, and not at all for handles and
threads. The resident set has more room because the command keeps freed blocks (`metakm.keep_freed_memory`): it moves
in steps of tens of MB while the memory in use stays. Writes results/benchmarks/soak.csv; exit code 1 if anything grew
or a run failed. Needs Linux with glibc 2.33 or later, and tensorboard. Ctrl-C ends it with the verdict so far.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import tyro
from measuring import describe, growth, resident_mb, write_csv

from metakm.run.__main__ import main as run

ALLOWED = {"in_use_mb": 0.02, "resident_mb": 0.1, "handles": 0.0, "threads": 0.0}


class Sample(NamedTuple):
    """What the process holds after a run."""

    seconds: int
    algo: str
    in_use_mb: float
    resident_mb: float
    handles: int
    threads: int


def main(
    minutes: float = 120,
    algos: tuple[str, ...] = ("km", "maml", "anil"),
    dataset: str = "glyphs",
    iterations: int = 20,
    tasks: int = 50,
) -> int:
    """Run, sample, judge.

    Args:
        minutes: how long to go on starting runs.
        algos: strategies, in turn.
        dataset: glyphs or omniglot.
        iterations: meta-training iterations of each run, with a validation at every half of them.
        tasks: meta-test tasks of each run.
    """
    flags = f"--dataset {dataset} --iterations {iterations} --val-every {max(1, iterations // 2)} --val-tasks 10 "
    flags += f"--eval-tasks {tasks} --quiet"
    made_by, began = describe(), time.monotonic()
    print(made_by, flush=True)
    samples: list[Sample] = []
    while len(samples) < 2 * len(algos) or time.monotonic() - began < 60 * minutes:
        algo = algos[len(samples) % len(algos)]
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            code = run([*flags.split(), "--algo", algo, "--out", folder, "--log-dir", f"{folder}/log"])
        if code:
            print(f"{algo} ended with exit code {code} after {len(samples)} runs")
            return 1 if not samples else _conclude(samples, made_by) or 1
        samples.append(_sample(algo, time.monotonic() - began))
        print(", ".join(f"{name} {value}" for name, value in samples[-1]._asdict().items()), flush=True)
    return _conclude(samples, made_by)


def _conclude(samples: list[Sample], made_by: str) -> int:
    """Write, judge and print; 1 if anything grew."""
    print(write_csv("soak", Sample._fields, samples, made_by))
    settled, worst = max(len({s.algo for s in samples}), math.ceil(len(samples) / 10)), 0
    for name, allowed in ALLOWED.items():
        values = [getattr(sample, name) for sample in samples]
        grown = growth(values, settled)
        worst = max(worst, int(grown > allowed))
        verdict = "grows" if grown > allowed else "flat"
        print(f"{name}: {verdict}; peak {max(values):g}, {grown:+.2%} after the first {settled} of {len(samples)} runs")
    return worst


class _Mallinfo2(ctypes.Structure):
    # malloc.h; ten fields, of which uordblks are the bytes in use
    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names)


def _in_use_mb() -> float:
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo2
    return float(mallinfo2().uordblks / 1e6)


def _sample(algo: str, seconds: float) -> Sample:
    gc.collect()
    handles, threads = (len(list(Path("/proc/self", kind).iterdir())) for kind in ("fd", "task"))
    return Sample(round(seconds), algo, round(_in_use_mb(), 1), round(resident_mb(), 1), handles, threads)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))

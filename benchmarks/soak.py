"""Resident memory, file handles and threads over hours of whole runs: `python benchmarks/soak.py --minutes 120`.

One process does one run after another through the main command (meta-training, meta-validation, checkpoints,
TensorBoard files, meta-test, pictures), with each strategy in turn, in a folder that is removed after each. After each
run it samples its resident set, open file handles and threads. Flat means: after the first tenth of the runs (one of
each strategy at least) the peak of the resident set is at most 2 % above the peak until then, and that of handles and
threads not above it at all. Writes results/benchmarks/soak.csv; exit code 1 if anything grew or a run failed. Linux
only, and needs tensorboard. Ctrl-C ends it with the verdict so far.
"""

from __future__ import annotations

import contextlib
import io
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import tyro
from measuring import describe, growth, resident_mb, write_csv

from metakm.run import main as run

ALLOWED = {"resident_mb": 0.02, "handles": 0.0, "threads": 0.0}


class Sample(NamedTuple):
    """What the process holds after a run."""

    seconds: int
    algo: str
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
        print(f"{algo}: {samples[-1].resident_mb} MB after {samples[-1].seconds} s", flush=True)
    return _conclude(samples, made_by)


def _conclude(samples: list[Sample], made_by: str) -> int:
    """Write, judge and print; 1 if anything grew."""
    print(write_csv("soak", Sample._fields, [*samples, ("# " + made_by, "", "", "", "")]))
    settled, worst = max(len({s.algo for s in samples}), math.ceil(len(samples) / 10)), 0
    for name, allowed in ALLOWED.items():
        values = [getattr(sample, name) for sample in samples]
        grown = growth(values, settled)
        worst = max(worst, int(grown > allowed))
        verdict = "grows" if grown > allowed else "flat"
        print(f"{name}: {verdict}; peak {max(values):g}, {grown:+.2%} after the first {settled} of {len(samples)} runs")
    return worst


def _sample(algo: str, seconds: float) -> Sample:
    handles, threads = (len(list(Path("/proc/self", kind).iterdir())) for kind in ("fd", "task"))
    return Sample(round(seconds), algo, round(resident_mb(), 1), handles, threads)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))

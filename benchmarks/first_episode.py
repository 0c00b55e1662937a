"""Seconds to the first episode of mini-ImageNet from its archives: `python benchmarks/first_episode.py`.

With an empty cache, which decodes the archive, and with a warm one, each in a process of its own that has already
imported metakm; then in two processes at once. The memory is what a process that has read every image holds for itself:
it maps the cache's file, whose pages all processes share. Writes results/benchmarks/first_episode.csv.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import tyro
from measuring import describe, write_csv

import metakm


def first_episode(split: str) -> tuple[float, float]:
    """Seconds to the first batch, and 10^6 bytes that reading all images adds to the process's own memory."""
    before = _own_mb()
    began = time.perf_counter()
    dataset = metakm.load_dataset("mini-imagenet", split)
    metakm.EpisodeSampler(dataset, ways=5, shots=1, queries=15).batch(index=0, tasks=1)
    seconds = time.perf_counter() - began
    for first in range(0, len(dataset.images), 1000):
        dataset.images[first : first + 1000].sum()  # touch every page
    return seconds, _own_mb() - before


def _own_mb() -> float:
    """Memory that the process has written to: pages of a mapped file are not among it. Linux only."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:")) * 1024 / 1e6


def main(split: str = "train", workers: int = 2) -> None:
    """Measure and print.

    Args:
        split: train, val or test.
        workers: processes at a time that read the warm cache.
    """
    context = multiprocessing.get_context("fork")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["METAKM_CACHE"] = folder
        for state, count in (("cold", 1), ("warm", 1), ("warm, at once", workers)):
            with context.Pool(count) as pool:
                for seconds, private in pool.map(first_episode, [split] * count, chunksize=1):
                    rows.append((split, state, f"{seconds:.2f}", f"{private:.1f}"))
                    print(*rows[-1], flush=True)
    header = ("split", "cache", "seconds_to_first_episode", "own_mb")
    print(write_csv("first_episode", header, rows, describe()))


if __name__ == "__main__":
    tyro.cli(main)

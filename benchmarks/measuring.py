"""What the benchmarks share: alternating timing, the machine's description, CSV output."""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from metakm.data import Episodes
from metakm.io.csv_file import csv_text
from metakm.io.files import write_text
from metakm.run.peak_memory import resident_bytes
from metakm.run.provenance import git_commit

RESULTS = Path(__file__).resolve().parent.parent / "results" / "benchmarks"


def alternate(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time each contestant once a round, in turn, after one uncounted round; milliseconds by name.

    Args:
        clock: seconds; `time.process_time` for CPU time, which other work on the machine changes less.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            gc.collect()
            _wait(device)
            began = clock()
            run()
            _wait(device)
            if turn:
                times[name].append(1000 * (clock() - began))
    return times


def noise_episodes(
    tasks: int,
    ways: int,
    shape: tuple[int, int, int],
    shots: int = 1,
    queries: int = 1,
    device: torch.device | None = None,
) -> Episodes:
    """Episodes of noise, images `[T, n, *shape]`: time does not depend on the pixels."""

    def half(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(ways).repeat_interleave(n).expand(tasks, -1)
        return torch.rand(tasks, ways * n, *shape, device=device), labels.to(device)

    return Episodes(*half(shots), *half(queries), range(tasks))


def median_ratio(slower: list[float], faster: list[float]) -> float:
    """Median over rounds of slower / faster, so that a drift of the machine's speed cancels."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def resident_mb() -> float:
    """Resident set of this process in 10^6 bytes. Linux only."""
    found = resident_bytes("VmRSS")
    assert found is not None, "on Linux"
    return found / 1e6


def growth(values: Sequence[float], settled: int) -> float:
    """Peak of what comes after the first `settled` values, relative to the peak of those: 0.02 is 2 % more."""
    return max(values[settled:] or values) / max(values[:settled]) - 1


def describe(device: torch.device | None = None) -> str:
    """Versions, threads and device in one line."""
    versions = [f"{name} {_version(name)}" for name in ("torch", "metakm", "higher", "learn2learn", "jax")]
    where = torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else "cpu"
    return ", ".join(
        [f"Python {sys.version.split()[0]}", *versions, f"{torch.get_num_threads()} threads", where, git_commit()[:12]]
    )


def write_csv(name: str, header: Sequence[str], rows: Iterable[Sequence[object]], made_by: str) -> Path:
    """Write results/benchmarks/<name>.csv, with a last line that says how it was made."""
    path = RESULTS / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [*rows, (f"# {made_by}", *[""] * (len(header) - 1))]
    write_text(path, csv_text((dict(zip(header, line, strict=True)) for line in lines), header))
    return path


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)

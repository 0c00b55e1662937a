"""How the time and memory of a meta-training iteration grow: `python benchmarks/growth.py`.

One quantity at a time is changed from a small Omniglot setting: tasks, inner steps, ways, pixels of an image, filters
of a layer (convolutions grow with their square, all else with their number). Each point runs in a process of its own:
the median time of some iterations, and by how much the process grew at most. Writes results/benchmarks/growth.csv and
one growth_<quantity>.png for each quantity; `--plot` draws them again from the CSV.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import tyro
from measuring import RESULTS, describe, noise_episodes, resident_mb, write_csv

import metakm
from metakm.io.csv_file import read_csv
from metakm.io.figure import new_figure
from metakm.learning.malloc import keep_freed_memory
from metakm.run.peak_memory import peak_memory_mb

ALGORITHMS = ("maml", "anil", "km")
COLUMNS = ("quantity", "value", "algo", "median_ms", "grown_mb")


@dataclasses.dataclass(frozen=True)
class Point:
    """An iteration: 20-way 1-shot with one query, 28x28 pixels, conv4-64 with stride, 5 inner steps, 4 tasks."""

    tasks: int = 4
    steps: int = 5
    ways: int = 20
    side: int = 28
    filters: int = 64


class Quantity(NamedTuple):
    """What is changed, to which values, and on which scale its cost should be a straight line."""

    values: Sequence[int]
    scale: str
    of: Callable[[int], float]


QUANTITIES: Mapping[str, Quantity] = {
    "tasks": Quantity((2, 4, 8, 12, 16), "tasks", float),
    "steps": Quantity((1, 2, 5, 10, 15), "inner steps", float),
    "ways": Quantity((5, 10, 20, 30, 40), "ways", float),
    "side": Quantity((28, 42, 56, 70, 84), "pixels of an image, 1,000", lambda side: side**2 / 1000),
    "filters": Quantity((16, 32, 64, 96, 128), "filters of a layer", float),
}


def measure(algo: str, point: Point, rounds: int) -> tuple[float, float]:
    """Median milliseconds of an iteration, and 10^6 bytes by which the process grew at most."""
    keep_freed_memory()
    torch.manual_seed(0)
    backbone = metakm.Conv4(1, point.filters, "stride", image_size=point.side)
    strategy = metakm.make_strategy(algo, backbone, point.ways)
    episodes = noise_episodes(point.tasks, point.ways, (1, point.side, point.side))
    before, times = resident_mb(), []
    for _ in range(rounds + 1):
        began = time.process_time()
        strategy.zero_grad()
        loss = metakm.meta_loss(strategy, episodes, inner_lr=0.1, inner_steps=point.steps).loss
        loss.backward()  # type: ignore[no-untyped-call]
        times.append(1000 * (time.process_time() - began))
    return statistics.median(times[1:]), peak_memory_mb(torch.device("cpu")) - before


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Intercept and slope of the straight line through the points, and the largest distance as a share of the value."""
    slope, intercept = np.polyfit(x, y, 1)
    away = np.abs(np.asarray(y) - (intercept + slope * np.asarray(x))) / np.asarray(y)
    return float(intercept), float(slope), float(away.max())


def points(rows: Iterable[Mapping[str, str]], name: str, algo: str, column: str) -> tuple[list[float], list[float]]:
    """The values of a quantity on its scale, and what was measured there."""
    own = [row for row in rows if (row["quantity"], row["algo"]) == (name, algo)]
    return [QUANTITIES[name].of(int(row["value"])) for row in own], [float(row[column]) for row in own]


def draw(rows: Sequence[Mapping[str, str]], folder: Path) -> None:
    """One picture for each quantity: time beside memory, the points with their straight lines."""
    for name, quantity in QUANTITIES.items():
        figure = new_figure(figsize=(8, 3.2), layout="constrained")
        for axes, column, unit in zip(figure.subplots(1, 2), COLUMNS[3:], ("ms (CPU)", "10^6 bytes"), strict=True):
            for algo in ALGORITHMS:
                x, y = points(rows, name, algo, column)
                intercept, slope, _ = line(x, y)
                (drawn,) = axes.plot(x, y, "o", label=algo)
                ends = [0.0, max(x)]
                axes.plot(ends, [intercept + slope * end for end in ends], color=drawn.get_color(), linewidth=1)
            axes.set(xlabel=quantity.scale, ylabel=unit, xlim=(0, None), ylim=(0, None))
        figure.axes[0].legend(frameon=False)
        figure.suptitle(f"A meta-training iteration against {quantity.scale.partition(',')[0]}", fontsize=10)
        figure.savefig(folder / f"growth_{name}.png", dpi=110)


def report(rows: Sequence[Mapping[str, str]]) -> None:
    """Each straight line, and how far its points are from it."""
    for name in QUANTITIES:
        for algo in ALGORITHMS:
            said = []
            for column, unit in zip(COLUMNS[3:], ("ms", "MB"), strict=True):
                intercept, slope, away = line(*points(rows, name, algo, column))
                said.append(f"{intercept:.1f} + {slope:.3g} x {unit} (points up to {away:.0%} away)")
            print(f"{name:8}{algo:6}{'; '.join(said)}")


def main(rounds: int = 5, plot: bool = False) -> None:
    """Measure, write and draw.

    Args:
        rounds: counted iterations of each point.
        plot: draw the pictures from the CSV, and end.
    """
    path = RESULTS / "growth.csv"
    if not plot:
        torch.set_num_threads(1)
        context = multiprocessing.get_context("fork")
        rows = []
        for name, quantity in QUANTITIES.items():
            for algo in ALGORITHMS:
                for value in quantity.values:
                    point = dataclasses.replace(Point(), **{name: value})
                    with context.Pool(1) as pool:
                        found = pool.apply(measure, (algo, point, rounds))
                    rows.append((name, value, algo, *(f"{number:.1f}" for number in found)))
                    print(*rows[-1], flush=True)
        write_csv("growth", COLUMNS, rows, describe())
    rows_of_file = [row for row in read_csv(path) if not row["quantity"].startswith("#")]
    report(rows_of_file)
    draw(rows_of_file, RESULTS)


if __name__ == "__main__":
    tyro.cli(main)

"""A training step of a modulated ResNet-50 against one of full fine-tuning: `python benchmarks/modulate_step.py`.

Both take the same images, with Adam. Time is the median over rounds in which both take turns; memory is the peak of a
process of its own that takes three steps, less what it holds before it has a network, the median of five processes.
Writes results/benchmarks/modulate_step.csv.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
import torchvision
import tyro
from measuring import alternate, describe, median_ratio, write_csv

from metakm.learning.malloc import keep_freed_memory
from metakm.modulation import modulate
from metakm.run.peak_memory import peak_memory_mb

SETTINGS = ((8, 128), (8, 224), (32, 128))  # images, pixels
METHODS = ("full", "km")


def main(rounds: int = 7, threads: int = 1, alone: str = "", images: int = 8, pixels: int = 128) -> None:
    """Measure and print.

    Args:
        rounds: counted rounds.
        threads: of PyTorch.
        alone: full or km: print the memory of its steps and end.
        images: in a step, with `alone`.
        pixels: side of an image, with `alone`.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    if alone:
        print(_peak_mb(alone, images, pixels))
        return
    made_by, rows = describe(), []
    print(made_by, flush=True)
    for images, pixels in SETTINGS:
        times = alternate({method: _stepper(method, images, pixels) for method in METHODS}, rounds)
        memory = {method: _memory_alone(method, images, pixels, threads) for method in METHODS}
        for method in METHODS:
            ratio = median_ratio(times[method], times["full"])
            share = memory[method] / memory["full"]
            values = (
                f"{statistics.median(times[method]):.1f}",
                f"{ratio:.2f}",
                f"{memory[method]:.0f}",
                f"{share:.2f}",
            )
            rows.append((f"{images} x {pixels} px", method, *values))
            print(f"{images:3} x {pixels} px  {method:5}{values[0]:>9} ms {ratio:6.2f} {values[2]:>7} MB {share:6.2f}")
    header = ("step", "method", "median_ms", "ratio_to_full", "memory_mb", "memory_to_full")
    print(write_csv("modulate_step", header, rows, made_by))


def _stepper(method: str, images: int, pixels: int) -> Callable[[], None]:
    torch.manual_seed(0)
    network = torchvision.models.resnet50(num_classes=100)
    if method == "km":
        modulate(network)
    optimiser = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 1e-4)
    batch, labels = torch.randn(images, 3, pixels, pixels), torch.randint(0, 100, (images,))

    def step() -> None:
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(batch), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step


def _memory_alone(method: str, images: int, pixels: int, threads: int) -> float:
    flags = {"alone": method, "images": images, "pixels": pixels, "threads": threads}
    command = [sys.executable, __file__, *(f"--{name}={value}" for name, value in flags.items())]
    runs = (subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(5))
    return statistics.median(float(run.stdout) for run in runs)


def _peak_mb(method: str, images: int, pixels: int) -> float:
    cpu = torch.device("cpu")
    before = peak_memory_mb(cpu)
    step = _stepper(method, images, pixels)
    for _ in range(3):
        step()
    return peak_memory_mb(cpu) - before


if __name__ == "__main__":
    tyro.cli(main)

"""`metakm.experiments.scratch` against the usual PyTorch loop: `python benchmarks/scratch_loop.py`.

Both train the same ResNet-32 on CIFAR-10 at 32 px, batch 64, SGD with momentum, shifted by up to 4 pixels and flipped.
The usual loop: PIL images, torchvision's transforms, a DataLoader that shuffles, channels-first. It runs with its
workers and without; the CPU time of workers counts for neither. Milliseconds of an iteration, in turn in one
program; writes results/benchmarks/scratch_loop.csv.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.transforms as T
import tyro
from measuring import alternate, describe, median_ratio, write_csv
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from metakm.data.loading import data_roots
from metakm.experiments import scratch
from metakm.experiments.batches import IMAGENET
from metakm.experiments.classification import Classification, labels_of, load_cifar10
from metakm.experiments.networks import cifar_classifier
from metakm.experiments.training import Training
from metakm.learning.malloc import keep_freed_memory

BATCH, RATE = 64, 0.1


class Pictures(Dataset[Any]):
    """Images in memory and labels, as torchvision's CIFAR-10 holds them."""

    def __init__(self, data: Classification) -> None:
        self.images = data.train.images.transpose(0, 2, 3, 1).copy()
        self.labels = labels_of(data.train)
        steps = [T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(*IMAGENET)]
        self.transform = T.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def usual_loop(data: Classification, iterations: int, workers: int) -> Callable[[], None]:
    """Some iterations of a training loop as in PyTorch's tutorials."""
    model = cifar_classifier(32, data.train.n_classes)
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=1e-4)
    loader = DataLoader(
        Pictures(data), BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )

    def forever() -> Iterator[Any]:
        while True:
            yield from loader

    batches = forever()

    def run() -> None:
        model.train()
        for images, labels in itertools.islice(batches, iterations):
            optimiser.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimiser.step()
            loss.item()

    return run


def ours(data: Classification, iterations: int) -> Callable[[], None]:
    """The same of the experiments' own training."""
    config = replace(scratch.PRESETS["paper"], batch=BATCH, epochs=1000, image_size=32)
    run = scratch.method_config(config, "scratch", "full")
    training = Training(cifar_classifier(32, data.train.n_classes), data, run, torch.device("cpu"))

    def train() -> None:
        for _ in range(iterations):
            training.step()

    return train


def main(rounds: int = 5, iterations: int = 10, threads: int = 1, workers: int = 1) -> None:
    """Measure and print.

    Args:
        rounds: counted rounds.
        iterations: of a round.
        threads: of PyTorch in the training process.
        workers: processes of the DataLoader that has some.
    """
    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    data = load_cifar10(32, data_roots(None))
    contestants = {
        "metakm": ours(data, iterations),
        "usual loop": usual_loop(data, iterations, 0),
        f"usual loop, {workers} workers": usual_loop(data, iterations, workers),
    }
    times = alternate(contestants, rounds)
    rows = []
    for name, measured in times.items():
        milliseconds, ratio = statistics.median(measured) / iterations, median_ratio(measured, times["metakm"])
        rows.append((name, f"{milliseconds:.1f}", f"{ratio:.2f}"))
        print(f"{name:26}{milliseconds:10.1f} ms   {ratio:6.2f} x metakm")
    header = ("contestant", "median_ms_an_iteration", "ratio_to_metakm")
    print(write_csv("scratch_loop", header, rows, describe()))


if __name__ == "__main__":
    tyro.cli(main)

"""Episodes a second, metakm's sampler against learn2learn's Taskset: `python benchmarks/sampling.py`.

Both draw from the same Omniglot arrays in memory and give float tensors; learn2learn as its examples set it up (no
rotations, which spares it work that metakm does). Writes results/benchmarks/sampling.csv.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import tyro
from contestants import learn2learn_is_installed
from measuring import alternate, describe, write_csv
from torch.utils.data import Dataset

import metakm
from metakm.learning.malloc import keep_freed_memory


class InMemory(Dataset[Any]):
    """The arrays of a metakm dataset as (image, label) pairs."""

    def __init__(self, dataset: metakm.FewShotDataset) -> None:
        self.images = torch.from_numpy(dataset.images.copy())
        self.labels = [c for c in range(dataset.n_classes) for _ in range(int(dataset.counts[c]))]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index].float() / 255, self.labels[index]


def main(rounds: int = 5, batches: int = 10, tasks: int = 16, ways: int = 20, shots: int = 1, queries: int = 1) -> None:
    """Measure and print.

    Args:
        rounds: counted rounds.
        batches: meta-batches a round.
        tasks: episodes in a meta-batch.
        ways: classes.
        shots: support images of a class.
        queries: query images of a class.
    """
    keep_freed_memory()
    dataset = metakm.load_dataset("omniglot", "train")
    sampler = metakm.EpisodeSampler(dataset, ways=ways, shots=shots, queries=queries)
    position = iter(range(0, 10**9, tasks))

    def ours() -> None:
        for _ in range(batches):
            sampler.batch(index=next(position), tasks=tasks)

    contestants: dict[str, Callable[[], object]] = {"metakm": ours}
    if learn2learn_is_installed():
        contestants["learn2learn"] = _taskset(dataset, ways, shots + queries, batches * tasks)
    made_by = describe()
    print(made_by, flush=True)
    times = alternate(contestants, rounds)
    iteration = _iteration_ms(sampler, tasks, ways)
    rows = []
    for name, measured in times.items():
        ms = statistics.median(measured) / batches
        share = 100 * ms / iteration
        rows.append((name, f"{1000 * tasks / ms:.0f}", f"{ms:.2f}", f"{share:.2f}"))
        print(f"{name:14}{1000 * tasks / ms:10.0f} episodes/s {ms:8.2f} ms a meta-batch {share:7.2f} % of an iteration")
    header = ("contestant", "episodes_per_second", "ms_per_meta_batch", "percent_of_a_maml_iteration")
    print(write_csv("sampling", header, rows, made_by))


def _taskset(dataset: metakm.FewShotDataset, ways: int, images: int, tasks: int) -> Callable[[], None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import learn2learn as l2l

        meta = l2l.data.MetaDataset(InMemory(dataset))
    transforms = [
        l2l.data.transforms.NWays(meta, n=ways),
        l2l.data.transforms.KShots(meta, k=images),
        l2l.data.transforms.LoadData(meta),
        l2l.data.transforms.RemapLabels(meta),
        l2l.data.transforms.ConsecutiveLabels(meta),
    ]
    taskset = l2l.data.TaskDataset(meta, task_transforms=transforms, num_tasks=-1)

    def run() -> None:
        for _ in range(tasks):
            taskset.sample()

    return run


def _iteration_ms(sampler: metakm.EpisodeSampler, tasks: int, ways: int) -> float:
    strategy = metakm.make_strategy("maml", metakm.Conv4(1, 64, "stride"), ways)
    episodes, times = sampler.batch(index=0, tasks=tasks), []
    for _ in range(4):
        began = time.perf_counter()
        metakm.meta_loss(strategy, episodes, inner_lr=0.5, inner_steps=5).loss.backward()  # type: ignore[no-untyped-call]
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[1:])


if __name__ == "__main__":
    tyro.cli(main)

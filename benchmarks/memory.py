"""Resident memory over many iterations: `python benchmarks/memory.py`.

Trains on real Omniglot if it is there, else on glyphs, and samples the resident set of the process after every
iteration. Flat means: the peak after iteration 100 is at most 2 % above the peak until then. Writes
results/benchmarks/memory_<algo>.csv.
"""

from __future__ import annotations

import torch
import tyro
from measuring import describe, growth, resident_mb, write_csv

import metakm
from metakm.learning.malloc import keep_freed_memory
from metakm.learning.outer_loop import OuterLoop
from metakm.presets import preset_config

SETTLED = 100  # iterations until the allocator has seen every size


def main(algo: str = "km", iterations: int = 2000, tasks: int = 2, dataset: str = "omniglot") -> None:
    """Measure and print.

    Args:
        algo: strategy.
        iterations: how many.
        tasks: meta-batch; the length of the run grows with it, the flatness does not depend on it.
        dataset: omniglot or glyphs.
    """
    keep_freed_memory()
    config = preset_config(algo=algo, dataset=dataset, meta_batch=tasks, queries=1, iterations=iterations)
    sampler = metakm.EpisodeSampler(metakm.load_dataset(dataset), ways=config.ways, shots=1, queries=1)
    torch.manual_seed(0)
    learner = metakm.Learner(
        algo,
        backbone=metakm.Conv4(1, 64, "stride"),
        ways=config.ways,
        inner_lr=config.inner_lr,
        inner_steps=config.inner_steps,
    )
    loop = OuterLoop(learner, sampler, config, torch.device("cpu"))
    made_by = describe()
    print(made_by, flush=True)
    resident = []
    for i in range(iterations):
        loop.step()
        resident.append(resident_mb())
        if (i + 1) % max(1, iterations // 10) == 0:
            print(f"iteration {i + 1}: {resident[-1]:.1f} MB", flush=True)
    print(f"peak of the first {SETTLED}: {max(resident[:SETTLED]):.1f} MB, after: {growth(resident, SETTLED):+.2%}")
    rows = [(i + 1, f"{resident[i]:.1f}") for i in range(0, iterations, max(1, iterations // 100))]
    print(write_csv(f"memory_{algo}", ("iteration", "resident_mb"), [*rows, ("# " + made_by, "")]))


if __name__ == "__main__":
    tyro.cli(main)

"""What adaptation beyond the head is worth at test time: `python benchmarks/what_adapts.py results/table3`.

Every trained model below the folder whose inner loop adapts more than a head is tested twice on the same meta-test
tasks, K queries per class: adapting all that it adapts in training, and the head alone (all other inner rates 0). Adds
lines to what-adapts.csv in that folder, and writes what-adapts.md from it. The same command goes on where the last one
stopped; `--page` writes the page alone.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import tyro
from measuring import describe
from tyro.conf import Positional
from what_adapts_page import page_text

import metakm
from metakm.cli.exit_code import exit_code
from metakm.errors import UserError
from metakm.io.csv_file import csv_text, read_csv
from metakm.io.files import write_text
from metakm.learning.malloc import keep_freed_memory
from metakm.learning.statistics import interval_over_tasks
from metakm.run.loading import TrainedRun
from metakm.run.provenance import now

STEPS = (1, 2, 5, 10, 20, 50)
COLUMNS = (
    "run_id", "algo", "dataset", "ways", "shots", "seed", "iterations", "test_inner_steps", "test_queries", "n_tasks",
    "all", "head", "gap", "gap_ci95", "when", "made_by",
)  # fmt: skip
Row = Mapping[str, str]


def trained_runs(folder: Path) -> Iterator[TrainedRun]:
    """Those below the folder that have weights, and adapt more than a head."""
    for weights in sorted(folder.rglob("weights.safetensors")):
        run = metakm.load_run(weights.parent)
        head = run.strategy.head_parameters()
        if head and len(head) < len(list(run.strategy.adapted.parameters())):
            yield run


def measured(run: TrainedRun, steps: int, tasks: int | None) -> Row:
    """Accuracy with all and with the head alone after so many inner steps, and their paired difference."""
    config = run.config
    whole, head = (
        metakm.evaluate(run, adapt=adapt, test_steps=steps, queries=config.shots, tasks=tasks).accuracies
        for adapt in ("all", "head")
    )
    numbers = (whole.mean(), head.mean(), (whole - head).mean(), interval_over_tasks(whole - head))
    setting = (config.run_id, config.algo, config.dataset, config.ways, config.shots, config.seed, config.iterations)
    values = (*setting, steps, config.shots, len(whole), *(f"{value:.6f}" for value in numbers), now(), describe())
    return dict(zip(COLUMNS, map(str, values), strict=True))


def main(
    results: Positional[Path] = Path("results/table3"),
    steps: Sequence[int] = STEPS,
    tasks: int | None = None,
    threads: int = 1,
    page: bool = False,
) -> int:
    """Test what has no line yet, and write the page. Exit code: 0 done, 2 a user error, 130 interrupted.

    Args:
        results: folder of the runs.
        steps: inner steps at the test.
        tasks: from the first on; as many as the run's own test has, without it.
        threads: of PyTorch.
        page: write the page from the lines, and end.
    """
    if not results.is_dir():
        raise UserError(f"Expected a folder of runs, got {results}; check the path")
    keep_freed_memory()
    torch.set_num_threads(threads)
    path = results / "what-adapts.csv"
    rows: list[Row] = list(read_csv(path)) if path.is_file() else []
    for run, count in itertools.product([] if page else trained_runs(results), steps):
        wanted = (run.config.run_id, str(count), str(tasks or run.config.eval_tasks))
        places = [i for i, row in enumerate(rows) if (row["run_id"], row["test_inner_steps"]) == wanted[:2]]
        if any(rows[place]["n_tasks"] == wanted[2] for place in places):
            continue
        for place in places:  # of another number of tasks
            del rows[place]
        rows.append(measured(run, count, tasks))
        write_text(path, csv_text(rows, COLUMNS))
        print(*(rows[-1][name] for name in COLUMNS[:-2]), flush=True)
    write_text(results / "what-adapts.md", page_text(rows))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main), "repeat the same command"))

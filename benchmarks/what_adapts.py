"""What adaptation beyond the head is worth at test time: `python benchmarks/what_adapts.py results/table3`.

Every trained model below the folder whose inner loop adapts more than a head is tested twice on the same meta-test
tasks, K queries per class: adapting all that it adapts in training, and the head alone (all other inner rates 0). Each
of the two is one inner loop, whose queries are answered after several of its steps. Adds lines to what-adapts.csv in
that folder, and writes what-adapts.md from it. The same command goes on where the last one stopped; `--page` writes the
page alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import tyro
from measuring import describe
from torch import Tensor, nn
from tyro.conf import Positional
from what_adapts_page import page_text

import metakm
from metakm.cli.exit_code import REPEAT, exit_code
from metakm.data.episodes import Episodes
from metakm.errors import UserError
from metakm.io.csv_file import csv_text, read_csv
from metakm.io.files import write_text
from metakm.learning.inner_loop import GradientDescent
from metakm.learning.inner_rates import head_rates
from metakm.learning.malloc import keep_freed_memory
from metakm.learning.statistics import interval_over_tasks
from metakm.run.evaluate import RunEvaluation
from metakm.run.loading import TrainedRun
from metakm.run.provenance import now

STEPS = (2, 3, 5, 10, 20)
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


def measured(run: TrainedRun, steps: Sequence[int], tasks: int) -> Iterator[Row]:
    """For each number of inner steps, the accuracy with all and with the head alone, and their paired difference."""
    config = run.config
    tested = RunEvaluation(run, "test", {"test_queries": config.shots, "eval_tasks": tasks})
    whole, head = (accuracies(tested, steps, head_only) for head_only in (False, True))
    setting = (config.run_id, config.algo, config.dataset, config.ways, config.shots, config.seed, config.iterations)
    for count in steps:
        a, b = whole[count], head[count]
        numbers = (f"{value:.6f}" for value in (a.mean(), b.mean(), (a - b).mean(), interval_over_tasks(a - b)))
        values = (*setting, count, config.shots, len(a), *numbers, now(), describe())
        yield dict(zip(COLUMNS, map(str, values), strict=True))


def accuracies(tested: RunEvaluation, steps: Sequence[int], head_only: bool) -> dict[int, npt.NDArray[np.float64]]:
    """Query accuracies `[tasks]` after each of these numbers of inner steps, all of one inner loop."""
    evaluator = tested.evaluator
    learner, strategy = evaluator.learner.eval(), evaluator.learner.strategy
    rates = head_rates(strategy, learner.inner_lr) if head_only else learner.inner_lr
    found: dict[int, list[Tensor]] = {count: [] for count in steps}
    for first in range(0, tested.config.eval_tasks, evaluator.chunks.testing):
        count = min(evaluator.chunks.testing, tested.config.eval_tasks - first)
        episodes = tested.sampler.batch(index=first, tasks=count).to(evaluator.device, evaluator.dtype)

        @torch.no_grad()
        def look(step: int, adapted: nn.Module, episodes: Episodes = episodes) -> None:
            if step + 1 in found:
                logits = strategy.query_logits(adapted, episodes.support_images, episodes.query_images)
                found[step + 1].append((logits.argmax(-1) == episodes.query_labels).double().mean(1).cpu())

        inner = GradientDescent(strategy, rates, max(steps), progress=1.0)
        inner.after_each_step(look)
        with torch.no_grad():
            strategy.adapt(inner, strategy.encode(episodes.support_images), episodes.support_labels)
        inner.release()
    return {count: torch.cat(parts).numpy() for count, parts in found.items()}


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
    for run in [] if page else trained_runs(results):
        count = tasks or run.config.eval_tasks
        own = {int(row["test_inner_steps"]): row for row in rows if row["run_id"] == run.config.run_id}
        missing = [each for each in steps if each not in own or int(own[each]["n_tasks"]) != count]
        if not missing:
            continue
        rows = [row for row in rows if row not in [own.get(each) for each in missing]]  # of another number of tasks
        for row in measured(run, missing, count):
            rows.append(row)
            print(*(row[name] for name in COLUMNS[:-2]), flush=True)
        write_text(path, csv_text(rows, COLUMNS))
    write_text(results / "what-adapts.md", page_text(rows))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main), REPEAT))

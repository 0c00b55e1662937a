"""How a trained run adapts best: `python benchmarks/task_rates.py RUN --rates 0.5 2 --steps 20 100`.

Tests a run on its meta-validation tasks with each inner learning rate and number of inner steps, and prints a line for
each. It is how a strategy's own values for a preset (`Strategy.preset_values`) were chosen where the inner loop runs at
the test alone. The meta-test is not touched.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import tyro

from metakm.cli.exit_code import exit_code
from metakm.learning.evaluation import Evaluation, accuracies
from metakm.run.build import make_sampler
from metakm.run.loading import TrainedRun, load_run


def measure(run: TrainedRun, rate: float, steps: int, tasks: int) -> Evaluation:
    """The run on its first meta-validation tasks."""
    found = accuracies(
        run.strategy,
        make_sampler(run.config, "val"),
        tasks=tasks,
        inner_lr=rate,
        inner_steps=steps,
        chunk=10,
        device=torch.device("cpu"),
    )
    return Evaluation(found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 the user's mistake, 130 interrupted."""
    return exit_code(lambda: tyro.cli(_main, args=arguments))


def _main(run: tyro.conf.Positional[Path], rates: tuple[float, ...], steps: tuple[int, ...], tasks: int = 100) -> int:
    """Test a run on meta-validation with several inner learning rates and steps.

    Args:
        run: its folder.
        rates: inner learning rates.
        steps: numbers of inner steps.
        tasks: meta-validation tasks.
    """
    trained = load_run(run)
    for rate in rates:
        for count in steps:
            found = measure(trained, rate, count, tasks)
            print(f"rate {rate:g}, {count} steps: {100 * found.accuracy:.2f} +- {100 * (found.interval or 0):.2f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Baselines beside km and anil at one budget: `python benchmarks/baselines.py`.

R2-D2, Baseline++, ProtoNet, CAVIA, KM and ANIL on mini-ImageNet, 5-way, 1 and 5 shots, seed 0, conv4-64-pool. Each row
has half a core-hour of meta-training on one thread: before its run, the processor time of an iteration is measured once
and goes into OUT/plan.csv with the iterations that fit; validations and the meta-test come on top. From then on the run
is an ordinary one, of `--preset table3` with that many iterations, and its command is in OUT/README.md.

The same command goes on where the last one stopped, within a run too. `--status` says what is done, `--page` writes
OUT/README.md from the rows, beside published values. Other flags of metakm.run apply to every run.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from baselines_page import as_page
from budgeted_runs import FAILED, check_plan, run_each, run_process, seconds_an_iteration
from measuring import RESULTS, describe

from metakm.cli.exit_code import exit_code
from metakm.cli.flags import read_some_options
from metakm.cli.progress import duration, log_line
from metakm.config import RunConfig
from metakm.io.csv_file import csv_text, read_csv
from metakm.io.files import write_text
from metakm.learning.divergence import DivergedError
from metakm.learning.malloc import keep_freed_memory
from metakm.learning.memory import TooLittleMemoryError
from metakm.run.command_line import command, parse
from metakm.run.folder import RunFolder
from metakm.run.provenance import now

PLAN = (
    "algo", "shots", "flags", "core_seconds", "core_seconds_an_iteration", "iterations", "measured_at", "measured_by",
)  # fmt: skip
Row = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Baselines beside km and anil at one budget.

    python benchmarks/baselines.py [OPTIONS] [OPTIONS of metakm.run]
    """

    algo: tuple[str, ...] = ("r2d2", "baseline++", "protonet", "cavia", "km", "anil")
    """Strategies."""
    dataset: str = "mini-imagenet"
    """Dataset."""
    shots: tuple[int, ...] = (1, 5)
    """Support images of each class."""
    backbone: str = "conv4-64-pool"
    """Network."""
    core_seconds: float = 1800.0
    """Processor seconds of meta-training a row, without validations and meta-test."""
    out: Path = RESULTS.parent / "baselines"
    """Folder of plan, rows and page."""
    status: bool = False
    """Say what is done, and stop."""
    page: bool = False
    """Write the page, and stop."""


class Bench:
    """The rows of one folder.

    Args:
        rest: flags of metakm.run for every run.
    """

    def __init__(self, options: Options, rest: Sequence[str]) -> None:
        self.options, self.rest, self.path = options, list(rest), options.out / "plan.csv"
        self.plan: list[Row] = list(read_csv(self.path)) if self.path.is_file() else []
        self.flags = ["--dataset", options.dataset, "--backbone", options.backbone, *rest]
        check_plan(self.plan, options.core_seconds, self.flags, self.path)

    def cells(self) -> list[tuple[str, int]]:
        """Strategy and shots of each row, in the order in which they run."""
        return [(algo, shots) for shots in self.options.shots for algo in self.options.algo]

    def planned(self, algo: str, shots: int) -> Row | None:
        """Its line of the plan."""
        found = (row for row in self.plan if (row["algo"], row["shots"]) == (algo, str(shots)))
        return next(found, None)

    def config(self, algo: str, shots: int, iterations: int) -> RunConfig:
        """The settings of its run; it validates five times after the start, on few tasks: that is not in the budget."""
        own = ["--preset", "table3", "--algo", algo, "--shots", str(shots)]
        budget = ["--iterations", str(iterations), "--val-every", str(-(-iterations // 5))]
        budget += [] if "--val-tasks" in self.rest else ["--val-tasks", "50"]
        where = ["--out", str(self.options.out), "--resume"]
        return parse([*own, *budget, *where, *self.flags], prog="benchmarks/baselines.py")

    def measure(self, algo: str, shots: int) -> Row:
        """Add its line to the plan."""
        seconds = round(seconds_an_iteration(self.config(algo, shots, iterations=10)), 5)
        iterations = max(1, int(self.options.core_seconds / seconds))
        values = (
            algo, shots, shlex.join(self.flags), self.options.core_seconds, f"{seconds:.5f}", iterations, now(),
            describe(),
        )  # fmt: skip
        row = dict(zip(PLAN, map(str, values), strict=True))
        self.plan.append(row)
        self.options.out.mkdir(parents=True, exist_ok=True)
        write_text(self.path, csv_text(self.plan, PLAN))
        return row

    def run(self, algo: str, shots: int) -> int:
        """Measure if need be, and train, validate, test or go on; the exit code of the run."""
        try:
            row = self.planned(algo, shots) or self.measure(algo, shots)
        except (DivergedError, TooLittleMemoryError) as error:
            log_line(f"{algo}, {shots}-shot: {error}")
            return FAILED
        return run_process(self.config(algo, shots, int(row["iterations"])))

    def status(self) -> str:
        """A line a row."""
        lines = []
        for algo, shots in self.cells():
            row = self.planned(algo, shots)
            said = "not measured yet" if row is None else f"{row['iterations']} iterations, {self._state(row)}"
            lines.append(f"{algo:12} {shots}-shot: {said}")
        return "\n".join(lines)

    def _state(self, planned: Row) -> str:
        config = self.config(planned["algo"], int(planned["shots"]), int(planned["iterations"]))
        row = RunFolder(config.folder).read_row()
        if row is None:
            return "not begun"
        done = f", {100 * row['accuracy']:.2f} %" if row["status"] == "done" else ""
        return f"{row['status']}{done}, {duration(row['train_seconds'])} so far"

    def page(self) -> str:
        """The page, of what is done."""
        rows, failed = [], []
        for planned in self.plan:
            config = self.config(planned["algo"], int(planned["shots"]), int(planned["iterations"]))
            row = RunFolder(config.folder).read_row()
            if row is not None and row["status"] == "done":
                shown = dataclasses.replace(config, resume=False, out=Path("results/baselines"))
                rows.append((planned, row, command(shown)))
            elif row is not None and row["status"] == "failed":
                failed.append(f"`{planned['algo']}` {planned['shots']}-shot")
        return as_page(rows, self.options.core_seconds, failed)


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 done, 2 the user's mistake, or that of a run that was interrupted or failed."""
    return exit_code(lambda: _main(arguments), "repeat the same command")


def _main(arguments: Sequence[str]) -> int:
    options, rest = read_some_options(Options, "benchmarks/baselines.py", arguments)
    bench = Bench(options, rest)
    if options.status:
        print(bench.status())
        return 0
    if options.page:
        write_text(options.out / "README.md", bench.page())
        return 0
    keep_freed_memory()  # as a run has it
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    options.out.mkdir(parents=True, exist_ok=True)
    code = run_each(partial(bench.run, *cell) for cell in bench.cells())
    write_text(options.out / "README.md", bench.page())
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

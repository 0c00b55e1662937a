"""Baselines beside km and anil at one budget: `python benchmarks/baselines.py`.

R2-D2, Baseline++, ProtoNet, CAVIA, KM and ANIL on mini-ImageNet, 5-way, 1 and 5 shots, seed 0, conv4-64-pool. Each row
has half a core-hour of meta-training on one thread: before the first run, the CPU time of an iteration is measured for
each, and goes into OUT/plan.csv with the iterations that fit; validations and the meta-test, with 15 queries per class,
come on top. From then on a run is an ordinary one, of `--preset table3` with that many iterations, and its command is
in OUT/README.md.

The same command goes on where the last one stopped, within a run too. `--status` says what is done, `--page` writes
OUT/README.md from the rows, beside published values. Other flags of metakm.run apply to every run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from baselines_page import as_page
from budgeted_runs import BudgetedRuns, Key, Row
from measuring import RESULTS

from metakm.cli.exit_code import REPEAT, exit_code
from metakm.cli.flags import read_some_options
from metakm.cli.progress import duration
from metakm.config import RunConfig
from metakm.io.files import write_text
from metakm.run.command_line import parse


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


def runs_of(options: Options, rest: Sequence[str]) -> BudgetedRuns:
    """Those of the options' folder. They validate five times after the start, on few tasks: that is not in the budget.

    Args:
        rest: flags of metakm.run for every run.
    """
    flags = ["--dataset", options.dataset, "--backbone", options.backbone, *rest]
    usual = {"--val-tasks": "50", "--test-queries": "15"}  # with one query per class, intervals are twice as wide
    tests = [text for flag, value in usual.items() if flag not in rest for text in (flag, value)]

    def settings(key: Key, iterations: int) -> RunConfig:
        algo, shots = key
        own = ["--preset", "table3", "--algo", algo, "--shots", shots, "--iterations", str(iterations)]
        every = ["--val-every", str(-(-iterations // 5)), *tests]
        arguments = [*own, *every, "--out", str(options.out), "--resume", *flags]
        return parse(arguments, prog="benchmarks/baselines.py")

    return BudgetedRuns(("algo", "shots"), settings, options.core_seconds, flags, options.out)


def status(runs: BudgetedRuns, keys: Sequence[Key]) -> str:
    """A line a run."""
    plan = {runs.key(line): line for line in runs.plan()}
    return "\n".join(f"{key[0]:12} {key[1]}-shot: {_state(runs, plan.get(key))}" for key in keys)


def _state(runs: BudgetedRuns, line: Row | None) -> str:
    if line is None:
        return "not measured yet"
    if line["refused"]:
        return line["refused"]
    row = runs.row(line)
    if row is None:
        return f"{line['iterations']} iterations, not begun"
    done = f", {100 * row['accuracy']:.2f} %" if row["status"] == "done" else ""
    return f"{line['iterations']} iterations, {row['status']}{done}, {duration(row['train_seconds'])} so far"


def page(runs: BudgetedRuns) -> str:
    """The page, of what is done."""
    measured, failed = [], []
    for line in runs.plan():
        row = runs.row(line)
        if row is not None and row["status"] == "done":
            measured.append((line, row, runs.command(line, Path("results/baselines"))))
        elif line["refused"] or (row is not None and row["status"] == "failed"):
            failed.append(f"`{line['algo']}` {line['shots']}-shot")
    return as_page(measured, runs.core_seconds, failed)


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 done, 2 the user's mistake, or that of a run that was interrupted or failed."""
    return exit_code(lambda: _main(arguments), REPEAT)


def _main(arguments: Sequence[str]) -> int:
    options, rest = read_some_options(Options, "benchmarks/baselines.py", arguments)
    runs = runs_of(options, rest)
    keys = [(algo, str(shots)) for shots in options.shots for algo in options.algo]
    if options.status:
        print(status(runs, keys))
        return 0
    code = 0 if options.page else runs.run_all(keys, sound=keys[0])
    write_text(options.out / "README.md", page(runs))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

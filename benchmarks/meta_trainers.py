"""Which strategy, and which part of a pretrained network: `python benchmarks/meta_trainers.py`.

ProtoNet, KM-Proto, KM, ANIL and first-order MAML meta-train the norms, the kernel modulators, both, or all weights of
EfficientNet-Lite0, each for the same CPU time on one thread: the seconds of an iteration are measured once and go
into OUT/plan.csv with the iterations that fit; validations and the meta-test come on top. Flowers-102 and Grocery Store
in turn, 15-way 1-shot at 96 px; all are tested on the same tasks of classes never trained on. What a strategy refuses
has its reason in the plan.

The same command goes on where the last one stopped. `--page` writes OUT/README.md from the rows; other flags of
metakm.run apply to every run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from budgeted_runs import BudgetedRuns, Key
from measuring import RESULTS

from metakm.cli.exit_code import REPEAT, exit_code
from metakm.cli.flags import read_some_options
from metakm.config import RunConfig
from metakm.errors import unknown_name
from metakm.io.csv_file import read_csv
from metakm.io.files import write_text
from metakm.io.markdown import markdown_table
from metakm.run.command_line import parse

SHARED = (
    "--dataset flowers grocery-store --image-size 96 --augment --ways 15 --shots 1 --queries 5 --meta-batch 1 "
    "--backbone efficientnet-lite0 --weights pretrained --bn-mode frozen --schedule constant --grad-clip 0 "
    "--val-tasks 40 --eval-tasks 200"
)
STRATEGIES = {
    "protonet": "--protonet.distance cosine",
    "km-proto": "--km-proto.start exact --inner-lr 0.01 --inner-steps 3 --test-inner-steps 3",
    "km": "--km.start exact --inner-lr 0.005 --inner-steps 3 --test-inner-steps 5 --zero-head",
    "anil": "--inner-lr 0.01 --inner-steps 3 --test-inner-steps 5 --zero-head",
    "maml": "--first-order --inner-lr 0.01 --inner-steps 3 --test-inner-steps 5 --zero-head",
}
"""Flags of each strategy; inner learning rates are the best before meta-training, see `_SAID`."""
PARTS = {"norm": "1e-3", "km": "1e-3", "both": "1e-3", "full": "1e-4"}
"""What is trained, with its meta learning rate, chosen with ProtoNet on validation classes (see `_SAID`)."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Strategies and parts of a pretrained network, at one budget.

    python benchmarks/meta_trainers.py [OPTIONS] [OPTIONS of metakm.run]
    """

    algo: tuple[str, ...] = tuple(STRATEGIES)
    """Strategies."""
    train: tuple[str, ...] = tuple(PARTS)
    """Parts."""
    core_seconds: float = 300.0
    """Processor seconds of meta-training a row, without validations and meta-test."""
    out: Path = RESULTS.parent / "pretrained" / "meta-trainers"
    """Folder of plan, rows and page."""
    page: bool = False
    """Write the page, and stop."""

    def __post_init__(self) -> None:
        for name, given, known in (("--algo", self.algo, STRATEGIES), ("--train", self.train, PARTS)):
            for value in given:
                if value not in known:
                    raise unknown_name(name, value, known)


def runs_of(options: Options, rest: Sequence[str]) -> BudgetedRuns:
    """Those of the options' folder.

    Args:
        rest: flags of metakm.run for every run.
    """

    def settings(key: Key, iterations: int) -> RunConfig:
        algo, part = key
        own = f"--algo {algo} {STRATEGIES[algo]} --train {part} --meta-lr {PARTS[part]} --iterations {iterations}"
        every = f"--val-every {max(1, iterations // 5)} --resume"
        arguments = [*SHARED.split(), *own.split(), *every.split(), "--out", str(options.out / part), *rest]
        return parse(arguments, prog="benchmarks/meta_trainers.py")

    return BudgetedRuns(("algo", "train"), settings, options.core_seconds, rest, options.out)


def page(options: Options, runs: BudgetedRuns) -> str:
    """A line a strategy, a column a part."""
    cells, commands = {}, []
    for line in runs.plan():
        row = runs.row(line)
        if line["refused"]:
            cells[runs.key(line)] = "refused"
        elif row is not None and row["status"] == "done":
            kept = f"{best_iteration(runs.folder(line))} of {line['iterations']}"
            cells[runs.key(line)] = f"{100 * row['accuracy']:.2f} ± {100 * row['ci95']:.2f} ({kept})"
            commands.append(f"    {runs.command(line, Path('results/pretrained/meta-trainers', line['train']))}")
    lines = [(f"`{algo}`", *(cells.get((algo, part), "") for part in options.train)) for algo in options.algo]
    table = markdown_table(("strategy", *options.train), lines)
    said = _SAID.format(seconds=f"{options.core_seconds:g}")
    return (
        f"{said}\n{table}\n\nMade by `python benchmarks/meta_trainers.py`, that is by\n\n" + "\n".join(commands) + "\n"
    )


def best_iteration(folder: Path) -> int:
    """At which iteration a run's tested model was validated best."""
    validated = [line for line in read_csv(folder / "curve.csv") if line["val_accuracy"]]
    return int(max(validated, key=lambda line: float(line["val_accuracy"]))["iteration"])


_SAID = """# Which strategy, and which part of a pretrained network

Meta-test accuracy in %, ± the 95 % interval over tasks. Each run had as many iterations as fit into {seconds} s of CPU
time, not counting validations and meta-test, estimated from the fastest of a few (`plan.csv`). The model with the best
accuracy on the validation classes is tested; in brackets are its iteration (0: the network before meta-training) and
the number of iterations. One seed; the tasks are the same for all. `plan.csv` gives the reason for each refusal.

The strategies differ in more than what they adapt: `protonet` compares features by cosines, `km-proto` by squared
distances; `maml` is first-order, `km` and `anil` are second-order. The inner learning rates are the best of 0.001,
0.003, 0.01 and 0.03 (`km` also 0.005; `anil` 0.1 and 0.3, not 0.001) on 20 tasks of the validation classes before
meta-training (the commands of `norm` below with `--iterations 0 --val-tasks 20 --eval-tasks 2`): `anil` has 55.7 %,
`maml` 57.1, `km` 54.7; for `km-proto` all are alike, 51. Flowers-102 is stored at 64 px and enlarged to 96.

Meta learning rates were chosen with `protonet` on the validation classes, by its commands below at commit 8bd7c65 with
other rates and fewer iterations (165 for norm, 75 for km and both, 90 for full, each validated three times). The best
validation: norm 0.0003 67.3 %, 0.003 71.9 (0.001: 70.5 in the first 136 iterations of the row below, 72.6 in 204); km
0.001 64.8, 0.003 61.5 (0.0003: 62.5 in 81); both 0.001 68.2, 0.003 67.7 (0.0003: 67.4 in 90); full 0.00003 70.8, 0.0003
68.5 (0.0001: 71.3 in 74). The rows of km and both with 0.0003 are in the git history, up to commit 6e02cfa. A rate that
suits `protonet` may suit others less: `km` on modulators is best after 10 of its 50 iterations.
"""


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 done, 2 the user's mistake, or that of a run that was interrupted or failed."""
    return exit_code(lambda: _main(arguments), REPEAT)


def _main(arguments: Sequence[str]) -> int:
    options, rest = read_some_options(Options, "benchmarks/meta_trainers.py", arguments)
    runs = runs_of(options, rest)
    keys = [(algo, part) for part in options.train for algo in options.algo]
    code = 0 if options.page else runs.run_all(keys, sound=("protonet", "full"))
    write_text(options.out / "README.md", page(options, runs))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

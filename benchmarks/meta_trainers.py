"""Which strategy, and which part of a pretrained network: `python benchmarks/meta_trainers.py`.

ProtoNet, KM-Proto, KM, ANIL and first-order MAML meta-train the norms, the kernel modulators, both, or all weights of
EfficientNet-Lite0, each for the same processor time on one thread: the seconds of an iteration are measured once and go
into OUT/plan.csv with the iterations that fit; validations and the meta-test come on top. Flowers-102 and Grocery Store
in turn, 15-way 1-shot at 96 px; all are tested on the same tasks of classes never trained on. What a strategy refuses
has its reason in the plan.

The same command goes on where the last one stopped. `--page` writes OUT/README.md from the rows; other flags of
metakm.run apply to every run.
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
from budgeted_runs import check_plan, run_each, run_process, seconds_an_iteration
from measuring import RESULTS, describe

from metakm.cli.exit_code import exit_code
from metakm.cli.flags import read_some_options
from metakm.config import RunConfig
from metakm.errors import UserError, unknown_name
from metakm.io.csv_file import csv_text, read_csv
from metakm.io.files import write_text
from metakm.learning.divergence import DivergedError
from metakm.learning.malloc import keep_freed_memory
from metakm.learning.memory import TooLittleMemoryError
from metakm.run.build import build_learner, make_sampler
from metakm.run.command_line import command, parse
from metakm.run.folder import RunFolder
from metakm.run.provenance import now

SHARED = (
    "--dataset flowers grocery-store --image-size 96 --augment --ways 15 --shots 1 --queries 5 --meta-batch 1 "
    "--backbone efficientnet-lite0 --weights pretrained --bn-mode frozen --schedule constant --grad-clip 0 "
    "--val-tasks 40 --eval-tasks 200"
)
STRATEGIES = {
    "protonet": "--protonet.distance cosine",
    "km-proto": "--km-proto.start exact --inner-lr 0.01 --inner-steps 3 --test-inner-steps 3",
    "km": "--km.start exact --inner-lr 0.01 --inner-steps 3 --test-inner-steps 5 --zero-head",
    "anil": "--inner-lr 0.01 --inner-steps 3 --test-inner-steps 5 --zero-head",
    "maml": "--first-order --inner-lr 0.01 --inner-steps 3 --test-inner-steps 5 --zero-head",
}
"""Flags of each strategy; inner rates were not searched."""
PARTS = {"norm": "1e-3", "km": "3e-4", "both": "3e-4", "full": "1e-4"}
"""What is trained, with its meta learning rate."""
PLAN = (
    "algo", "train", "flags", "core_seconds", "core_seconds_an_iteration", "iterations", "refused", "measured_at",
    "measured_by",
)  # fmt: skip
Row = Mapping[str, str]


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


def config_of(options: Options, rest: Sequence[str], algo: str, part: str, iterations: int) -> RunConfig:
    """The settings of a run."""
    own = f"--algo {algo} {STRATEGIES[algo]} --train {part} --meta-lr {PARTS[part]} --iterations {iterations}"
    every = f"--val-every {max(1, iterations // 5)} --resume"
    where = ["--out", str(options.out / part)]
    return parse([*SHARED.split(), *own.split(), *every.split(), *where, *rest], prog="benchmarks/meta_trainers.py")


def planned(options: Options, rest: Sequence[str], algo: str, part: str) -> Row:
    """A line of the plan: how many iterations fit, or why there are none. Data and weights can be loaded."""
    seconds, iterations, refused = "", "", ""
    try:
        measured = seconds_an_iteration(config_of(options, rest, algo, part, 10), repetitions=3)
    except (UserError, DivergedError, TooLittleMemoryError) as error:
        refused = str(error)
    else:
        seconds, iterations = f"{measured:.4f}", str(max(1, int(options.core_seconds / measured)))
    values = (
        algo, part, shlex.join(rest), options.core_seconds, seconds, iterations, refused, now(), describe()
    )  # fmt: skip
    return dict(zip(PLAN, map(str, values), strict=True))


def try_loading(options: Options, rest: Sequence[str]) -> None:
    """Raises UserError for data or weights that cannot be loaded, which is no refusal of a strategy."""
    config = config_of(options, rest, "protonet", "full", 10)
    dataset = make_sampler(config, "train").dataset
    build_learner(config, dataset.image_shape, dataset.n_episode_classes)


def run_rest(options: Options, rest: Sequence[str]) -> int:
    """Run what is not done; the exit code of `run_each`."""
    path = options.out / "plan.csv"
    plan: list[Row] = list(read_csv(path)) if path.is_file() else []
    check_plan(plan, options.core_seconds, rest, path)
    try_loading(options, rest)

    def run(algo: str, part: str) -> int:
        line = next((row for row in plan if (row["algo"], row["train"]) == (algo, part)), None)
        if line is None:
            line = planned(options, rest, algo, part)
            plan.append(line)
            options.out.mkdir(parents=True, exist_ok=True)
            write_text(path, csv_text(plan, PLAN))
        return 0 if line["refused"] else run_process(config_of(options, rest, algo, part, int(line["iterations"])))

    return run_each(partial(run, algo, part) for part in options.train for algo in options.algo)


def page(options: Options, rest: Sequence[str]) -> str:
    """A line a strategy, a column a part."""
    path = options.out / "plan.csv"
    plan = list(read_csv(path))
    check_plan(plan, options.core_seconds, rest, path)
    cells, commands = {}, []
    for line in plan:
        place = line["algo"], line["train"]
        if line["refused"]:
            cells[place] = "refused"
            continue
        config = config_of(options, rest, *place, int(line["iterations"]))
        row = RunFolder(config.folder).read_row()
        if row is not None and row["status"] == "done":
            kept = f"{best_iteration(config.folder)} of {line['iterations']}"
            cells[place] = f"{100 * row['accuracy']:.2f} ± {100 * row['ci95']:.2f} ({kept})"
            out = Path("results/pretrained/meta-trainers", line["train"])
            shown = dataclasses.replace(config, resume=False, out=out)
            commands.append(f"    OMP_NUM_THREADS=1 {command(shown)}")
    header = ("strategy", *options.train)
    lines = [header, ["---"] * len(header)]
    lines += [[f"`{algo}`", *(cells.get((algo, part), "") for part in options.train)] for algo in options.algo]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    said = _SAID.format(seconds=f"{options.core_seconds:g}")
    return (
        f"{said}\n{table}\n\nMade by `python benchmarks/meta_trainers.py`, that is by\n\n" + "\n".join(commands) + "\n"
    )


def best_iteration(folder: Path) -> int:
    """At which iteration a run's tested model was validated best."""
    validated = [line for line in read_csv(folder / "curve.csv") if line["val_accuracy"]]
    return int(max(validated, key=lambda line: float(line["val_accuracy"]))["iteration"])


_SAID = """# Which strategy, and which part of a pretrained network

Meta-test accuracy in %, ± the 95 % interval over tasks. Each run had {seconds} processor seconds of meta-training, and
the model that was best on the validation classes is tested: in brackets its iteration, 0 being the network before
meta-training, and how many fitted. One seed; the tasks are the same for all. `plan.csv` gives the reason for each
refusal.

The strategies differ in more than what they adapt: `protonet` compares features by cosines, `km-proto` by squared
distances; `maml` is of first order, `km` and `anil` are of second. Inner and meta learning rates were not searched.
Flowers-102 is stored at 64 px and enlarged to 96.
"""


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 done, 2 the user's mistake, or that of a run that was interrupted or failed."""
    return exit_code(lambda: _main(arguments), "repeat the same command")


def _main(arguments: Sequence[str]) -> int:
    options, rest = read_some_options(Options, "benchmarks/meta_trainers.py", arguments)
    keep_freed_memory()  # as a run has it
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    code = 0 if options.page else run_rest(options, rest)
    write_text(options.out / "README.md", page(options, rest))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

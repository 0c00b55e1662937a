"""`metakm.run --evaluate FOLDER`: a finished run tested once more, beside what its row says."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy.typing as npt
import tyro

from metakm.cli.flags import flag, read_some_options
from metakm.cli.progress import Progress
from metakm.cli.signals import StopRequest, stop_on_request
from metakm.distributed.processes import Processes, joined
from metakm.distributed.torchrun import local_device
from metakm.errors import UserError, unknown_name
from metakm.learning.memory import TooLittleMemoryError
from metakm.learning.outer_loop import OuterLoop
from metakm.learning.statistics import interval_over_tasks
from metakm.registry import load_plugin
from metakm.run.build import make_sampler, resolve_device, with_data_here
from metakm.run.columns import SPLIT_NAMES, measured_columns, summary
from metakm.run.event_log import EventLog
from metakm.run.folder import RunFolder
from metakm.run.loading import TrainedRun, load_run, read_settings
from metakm.strategies import available_strategies


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Test a finished run again, beside what its row says.

    Writes nothing. Other flags of metakm.run would change what was trained.
    """

    evaluate: Path
    """Folder of the run: it has config.json, and weights.safetensors or checkpoint.pt."""
    split: Literal["val", "test"] = "test"
    """test: the meta-test tasks; val: the meta-validation tasks, to choose --test-inner-steps by."""
    data_root: Path | None = None
    """Folder with the data. Without it: the run's own, else as in training."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<n>. auto is the first GPU if there is one, else the CPU."""
    eval_tasks: int | None = None
    """Tasks, from the first on. Without it: as many as the run's."""
    test_inner_steps: int | None = None
    """Inner steps. Without it: the run's."""
    task_chunk: int | None = None
    """Tasks in memory at once; 0: as many as fit into half of the memory, by an estimate. Without it: the run's."""
    quiet: bool = False
    """No progress on standard error; errors and the result stay."""
    json: bool = False
    """For scripts: standard output has one JSON object a line, for progress and the result, and nothing else."""
    plugin: Annotated[tuple[Path, ...], tyro.conf.arg(help_behavior_hint="(default: none)")] = ()
    """Python files that register strategies; they run with your rights. Those of the run are not run unless named."""


def asks_for_evaluation(arguments: Sequence[str]) -> bool:
    """Whether --evaluate is among the arguments, or --split, which goes with it alone."""
    return any(argument.partition("=")[0] in {"--evaluate", "--split"} for argument in arguments)


def parse_evaluation(arguments: Sequence[str]) -> EvaluateOptions:
    """Read the command line; see `read_options`.

    Raises:
        UserError: a flag that does not go with --evaluate.
    """
    if {"-h", "--help"} & {*arguments}:
        arguments = ["--help"]  # without asking for the folder first
    options, rest = read_some_options(EvaluateOptions, "python -m metakm.run", arguments)
    if rest:
        known = [flag(field.name) for field in dataclasses.fields(EvaluateOptions) if field.name != "evaluate"]
        raise unknown_name("a flag beside --evaluate", rest[0].partition("=")[0], known)
    return options


def evaluate_run(options: EvaluateOptions) -> int:
    """Evaluate, print; return the exit code of `metakm.run`."""
    folder = RunFolder(options.evaluate)
    try:
        with StopRequest() as stop, joined() as processes:
            with processes.raise_together(UserError):
                loop = _prepare(options, processes)
            log = EventLog(loop.config)
            tasks, name = loop.config.eval_tasks, SPLIT_NAMES[options.split]
            with Progress(name, tasks, unit="task", quiet=options.quiet, report=log.progressed) as progress:
                tested = loop.accuracies(loop.sampler, tasks, stop_on_request(stop, progress.advance))
    except TooLittleMemoryError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except (StopIteration, KeyboardInterrupt):
        print("Stopped. Nothing was written.", file=sys.stderr)  # noqa: T201
        return 130
    _report(loop, log, tested, folder, options.split)
    return 0


def _prepare(options: EvaluateOptions, processes: Processes) -> OuterLoop:
    """The trained model with the episodes to test it on; its config has their number."""
    trained = _load(options)
    tasks = trained.config.val_tasks if options.split == "val" else trained.config.eval_tasks
    own = ("evaluate", "split")  # no fields of the config
    given = {name: value for name, value in vars(options).items() if name not in own and value is not None}
    config = dataclasses.replace(with_data_here(trained.config), **{"log_dir": None, "eval_tasks": tasks, **given})
    device = resolve_device(local_device(config.device))
    sampler = make_sampler(config, options.split)
    if sampler.dataset.image_shape != trained.image_shape:
        raise UserError(
            f"Expected images of {list(trained.image_shape)}, which the run was trained on, got "
            f"{list(sampler.dataset.image_shape)}; name the run's data by --data-root"
        )
    loop = OuterLoop(trained.strategy, sampler, config, device, processes)
    loop.load_model_state(trained.model_state())
    return loop


def _load(options: EvaluateOptions) -> TrainedRun:
    for plugin in options.plugin:
        load_plugin(plugin)
    settings = read_settings(options.evaluate)
    algo, plugins = settings.get("algo"), settings.get("plugin")
    if isinstance(plugins, list) and plugins and algo not in available_strategies():
        raise UserError(
            f"Expected --plugin for the strategy {algo!r}, got none that has it; the run was started with "
            f"--plugin {' '.join(str(path) for path in plugins)}"
        )
    return load_run(options.evaluate)


def _report(loop: OuterLoop, log: EventLog, tested: npt.NDArray[Any], folder: RunFolder, split: str) -> None:
    found = measured_columns(loop, loop.sampler, tested)
    row = folder.read_row()
    row = row if row is not None and row["status"] == "done" else None
    if row is not None and split == "val":
        row = {**row, "accuracy": row["val_accuracy"], "ci95": None, "n_tasks": loop.config.val_tasks}
    said = {f"row_{name}": row[name] if row else None for name in ("accuracy", "ci95", "n_tasks")}
    identity = {"run_id": row["run_id"] if row else found["run_id"], "split": split}
    log.line("result", {**found, **identity, **said})
    if not log.json:
        ending = _beside(found, row) + f": {folder.result if row else folder.path}"
        interval = interval_over_tasks(tested)
        print(summary(loop.config, float(tested.mean()), interval, ending, SPLIT_NAMES[split]))  # noqa: T201


def _beside(found: dict[str, Any], row: dict[str, Any] | None) -> str:
    """How the accuracy compares to the one in the run's row, and what else may have made it another."""
    if row is None:
        return "without a finished row to compare with"
    if (row["accuracy"], row["n_tasks"]) == (found["accuracy"], found["n_tasks"]):
        return "equal to its row"
    apart = 100 * (found["accuracy"] - row["accuracy"])
    interval = "" if row["ci95"] is None else f" +- {100 * row['ci95']:.2f}"
    says = f"{100 * row['accuracy']:.2f}{interval} % over {row['n_tasks']} tasks"
    names = ("split_hash", "test_inner_steps", "device", "threads", "torch_version")  # the last three: rounding alone
    changes = ", ".join(f"{name}={row[name]} (now {found[name]})" for name in names if row[name] != found[name])
    return f"{apart:+.2f} points from the {says} in its row" + (f", which has {changes}" if changes else "")

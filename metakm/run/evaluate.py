"""`python -m metakm evaluate`: test a trained run again, or on other data."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from metakm.cli.exit_code import INTERRUPTED, exit_code
from metakm.cli.progress import Progress, log_line
from metakm.cli.signals import StopRequest, stop_on_request
from metakm.config.dataset_names import dataset_names
from metakm.data.alternating import AlternatingDatasets
from metakm.data.registry import datasets
from metakm.device import compute_dtype, resolve_device
from metakm.distributed.processes import ALONE, Processes, join_processes
from metakm.distributed.torchrun import local_device, only_first_prints
from metakm.errors import UserError, unknown_name
from metakm.io.files import expanded
from metakm.learning.evaluation import Evaluation
from metakm.learning.evaluator import Evaluator
from metakm.learning.malloc import keep_freed_memory
from metakm.learning.memory import TaskChunks, TooLittleMemoryError
from metakm.registry import load_plugin
from metakm.run import provenance
from metakm.run.build import load_splits, make_sampler, with_data_here
from metakm.run.columns import evaluation_columns
from metakm.run.cross_domain import OUT, CrossDomainRow, require_shape, require_trained_ways
from metakm.run.earlier_run import require_unseen_by, same_data
from metakm.run.evaluate_options import Adapted, EvaluateOptions, Split, read_flags, tested_as
from metakm.run.event_log import EventLog
from metakm.run.folder import RunFolder
from metakm.run.loading import TrainedRun, load_run, require_config_file, require_plugins
from metakm.run.row import ResultRow
from metakm.run.row_comparison import OnSameTasks, compared_to_row, on_same_tasks, row_of_same_test
from metakm.run.summary import SPLIT_NAMES, summary


class RunEvaluation:
    """A trained run with the tasks to test it on.

    Args:
        changes: fields of the run's config to replace, such as `dataset` or `eval_tasks`.

    Raises:
        UserError: data that are missing, or whose images the run's network does not fit.
    """

    def __init__(
        self,
        run: TrainedRun,
        split: Split,
        changes: Mapping[str, Any],
        processes: Processes = ALONE,
        *,
        grey: bool = False,
        adapt: Adapted = "all",
    ) -> None:
        require_trained_ways(run, changes.get("ways"))
        if adapt not in get_args(Adapted):
            raise unknown_name("adapt", adapt, get_args(Adapted))
        self.run, self.adapt = run, adapt
        tasks = run.config.val_tasks if split == "val" else run.config.eval_tasks
        other = changes.get("dataset", run.config.dataset) != run.config.dataset
        if run.own_data is not None and not other:
            datasets.replace(run.config.dataset, run.own_data)  # another run's may have taken the name
        moved = {"data_root": None, "image_size": 0, "split": None, "split_seed": 0} if other else {}
        self.config = dataclasses.replace(
            with_data_here(run.config), **{"log_dir": None, "eval_tasks": tasks, **moved, **changes}
        )
        device = resolve_device(local_device(self.config.device))
        self.sampler = make_sampler(self.config, split, run.image_shape[0] if grey else None)
        require_shape(self.sampler.dataset.image_shape, run, self.config)
        if other or not same_data(run, self.config, self.sampler.dataset.split_hash):
            tested: object = self.sampler.dataset
            if grey:  # whose images equal none of the training's, so that they are compared in their colours
                tested = AlternatingDatasets(tuple(load_splits(self.config, split)))
            require_unseen_by(run, {split: tested})
        learner = run.learner if device.type == "cpu" else copy.deepcopy(run.learner).to(device)
        chunks = TaskChunks(learner.strategy, run.image_shape, self.config, device)
        self.evaluator = Evaluator(learner, chunks, device, compute_dtype(self.config.precision), processes)

    def columns(self, tested: Evaluation) -> dict[str, Any]:
        """See `evaluation_columns`."""
        origin = provenance.origin(self.evaluator.device, self.evaluator.processes.size)
        return evaluation_columns(self.config, self.evaluator, self.sampler, origin, tested.accuracies)

    def evaluate(self, progress: Callable[[int], None] = lambda _: None) -> Evaluation:
        """Raises StopIteration if `progress` does."""
        config = self.config
        return Evaluation(
            self.evaluator.accuracies(
                self.sampler, config.eval_tasks, progress, config.test_inner_steps, head_only=self.adapt == "head"
            ),
            len(dataset_names(config.dataset)),
        )


def evaluate(
    run: TrainedRun | str | Path,
    *,
    split: Split = "test",
    dataset: str | None = None,
    ways: int | None = None,
    shots: int | None = None,
    queries: int | None = None,
    image_size: int | None = None,
    grey: bool = False,
    tasks: int | None = None,
    inner_steps: int | None = None,
    adapt: Adapted = "all",
    data_root: str | Path | None = None,
    device: str = "auto",
) -> Evaluation:
    """Test a trained run; what is None is as in the run.

    Args:
        run: from `load_run` or `train`, or its folder.
        split: `test` for meta-test tasks, `val` for meta-validation tasks.
        dataset: another one, of images of the same shape.
        ways: classes in a task, where the strategy's head takes any number.
        shots, queries: support and query images of each class.
        image_size: side in pixels to which the images of another dataset are resized.
        grey: convert the test images to grey, repeated over the channels that the run was trained with.
        tasks: how many, from the first on.
        inner_steps: in each task.
        adapt: `all` that the inner loop adapts in training, or its `head` alone.
        data_root: a folder in which data are searched for first.
        device: `auto`, `cpu`, `cuda`, or another name that torch knows.

    Raises:
        UserError: a run that is damaged, or data that are missing or do not fit it.
    """
    trained = run if isinstance(run, TrainedRun) else load_run(run)
    asked = {
        "dataset": dataset,
        "ways": ways,
        "shots": shots,
        "test_queries": queries,
        "image_size": image_size,
        "eval_tasks": tasks,
        "test_inner_steps": inner_steps,
        "data_root": None if data_root is None else expanded(data_root, "data_root"),
        "device": device,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    return RunEvaluation(trained, split, given, grey=grey, adapt=adapt).evaluate()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 too little memory, 2 the user's mistake, 130 interrupted."""
    keep_freed_memory()
    with only_first_prints():
        return exit_code(lambda: _evaluate(read_flags(arguments)))


def _evaluate(options: EvaluateOptions) -> int:
    folder = RunFolder(options.run)
    try:
        with StopRequest() as stop, join_processes() as processes:
            with processes.raise_together(UserError):
                prepared = _prepare(options, processes)
                row = _row_of(prepared, options)
            log = EventLog(prepared.config, prepared.config.run_id)
            tasks, name = prepared.config.eval_tasks, SPLIT_NAMES[options.split]
            with Progress(name, tasks, unit="task", quiet=options.quiet, report=log.log_progress) as progress:
                found = prepared.evaluate(stop_on_request(stop, progress.advance))
    except TooLittleMemoryError as error:
        log_line(f"error: {error}")
        return 1
    except (StopIteration, KeyboardInterrupt):
        log_line("Stopped. Nothing was written.")
        return INTERRUPTED
    if row is None:
        _report(prepared, log, found, folder, options.split)
    elif processes.first:
        _write(row, prepared, log, found)
    return 0


def _prepare(options: EvaluateOptions, processes: Processes) -> RunEvaluation:
    for plugin in options.plugin:
        load_plugin(plugin)
    require_plugins(require_config_file(options.run))
    own = ("run", "split", "grey", "adapt", "out")  # no fields of the config
    given = {name: value for name, value in vars(options).items() if name not in own and value is not None}
    return RunEvaluation(load_run(options.run), options.split, given, processes, grey=options.grey, adapt=options.adapt)


def _row_of(prepared: RunEvaluation, options: EvaluateOptions) -> CrossDomainRow | None:
    """The row to write: that of a meta-test on another dataset.

    Raises:
        UserError: `--out` where no row is written; see `CrossDomainRow` for others.
    """
    if options.split != "test" or prepared.config.dataset == prepared.run.config.dataset:
        if options.out is not None:
            raise UserError(
                "Expected --out only with a meta-test on another --dataset, whose row it is for; leave it out"
            )
        return None
    return CrossDomainRow(prepared.run, prepared.config, tested_as(options), options.out or OUT)


def _write(row: CrossDomainRow, prepared: RunEvaluation, log: EventLog, tested: Evaluation) -> None:
    config = prepared.config
    found = vars(row.write(prepared.columns(tested), tested))
    log.print_json("result", {**found, "split": "test"})
    if not log.json:
        ending = f"trained on {found['trained_on']}: {row.path / ResultRow.FILE}"
        print(summary(config, found["accuracy"], found["ci95"], ending))  # noqa: T201


def _report(prepared: RunEvaluation, log: EventLog, tested: Evaluation, folder: RunFolder, split: Split) -> None:
    config = prepared.config
    found = prepared.columns(tested)
    row = row_of_same_test(folder, config, split)
    same = row is not None and split == "test" and row["split_hash"] == found["split_hash"]
    paired = on_same_tasks(folder, tested) if same else None
    said = {f"row_{name}": row[name] if row else None for name in ("accuracy", "ci95", "n_tasks")}
    said |= paired._asdict() if paired else dict.fromkeys(OnSameTasks._fields)
    identity = {"run_id": row["run_id"] if row else found["run_id"], "split": split}
    log.print_json("result", {**found, **identity, **said, "adapt": prepared.adapt})
    if not log.json:
        how = "head alone: " if prepared.adapt == "head" else ""
        ending = f"{how}{compared_to_row(found, row, paired)}: {folder.result if row else folder.path}"
        print(summary(config, found["accuracy"], found["ci95"], ending, SPLIT_NAMES[split]))  # noqa: T201

"""How a run's test, made again, compares to the run's own row."""

from __future__ import annotations

from typing import Any, NamedTuple

from metakm.config import RunConfig
from metakm.learning.evaluation import Evaluation
from metakm.learning.statistics import paired_difference
from metakm.run.evaluate_options import Split
from metakm.run.folder import RunFolder
from metakm.run.summary import format_metric


def row_of_same_test(folder: RunFolder, config: RunConfig, split: Split) -> dict[str, Any] | None:
    """The row of a finished run, if it has an accuracy on such tasks; `accuracy`, `ci95`, `n_tasks` are the split's."""
    row = folder.read_finished_row()
    if row is None or not _same_kind(row, config):
        return None
    if split == "test":
        return row
    known = {"accuracy": row["val_accuracy"], "ci95": None, "n_tasks": config.val_tasks}
    return None if row["val_accuracy"] is None else {**row, **known}


def _same_kind(row: dict[str, Any], config: RunConfig) -> bool:
    """Whether a row is of tasks of the same kind."""
    same = all(row[name] == getattr(config, name) for name in ("dataset", "ways", "shots"))
    return same and (row["test_queries"] or row["queries"]) == config.queries_of("test")


class OnSameTasks(NamedTuple):
    """A test minus the row's, on the tasks that both have: the first ones."""

    paired_tasks: int
    paired_row_accuracy: float  # of these tasks
    paired_difference: float
    paired_ci95: float | None  # half-width of its 95 % interval over tasks; None for one task


def on_same_tasks(folder: RunFolder, tested: Evaluation) -> OnSameTasks | None:
    """Compare a meta-test with the accuracies in the run's folder, task by task; None where it has none."""
    recorded = folder.read_tasks()
    if recorded is None or not len(recorded):
        return None
    tasks = min(len(recorded), len(tested.accuracies))
    found = paired_difference(tested.accuracies[None, :tasks], recorded[None, :tasks], tested.datasets)
    return OnSameTasks(tasks, float(recorded[:tasks].mean()), found.mean, found.tasks_ci95)


def compared_to_row(found: dict[str, Any], row: dict[str, Any] | None, paired: OnSameTasks | None) -> str:
    """How the accuracy compares to the one in the run's row, and what else may have made it another."""
    if row is None:
        return "with no row of such a test to compare with"
    if (row["accuracy"], row["n_tasks"]) == (found["accuracy"], found["n_tasks"]):
        return "equal to its row"
    width: float | None = None
    if paired is None:
        apart = found["accuracy"] - row["accuracy"]
        says = f"{format_metric(row['algo'], row['accuracy'], row['ci95'])} over {row['n_tasks']} tasks"
    else:
        apart, width = paired.paired_difference, paired.paired_ci95
        says = f"{format_metric(row['algo'], paired.paired_row_accuracy)} on the same {paired.paired_tasks} tasks"
    points = format_metric(row["algo"], apart, width, sign="+").replace(" %", " points")
    names = ("split_hash", "test_inner_steps", "device", "threads", "torch_version")  # the last three: rounding alone
    changes = ", ".join(f"{name}={row[name]} (now {found[name]})" for name in names if row[name] != found[name])
    return f"{points} relative to {says} in its row" + (f" (its row: {changes})" if changes else "")

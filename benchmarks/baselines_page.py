"""The page of baselines.py: measured rows, each with its budget, beside published ones with their networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from metakm.data.registry import dataset_entry
from metakm.io.markdown import markdown_table
from metakm.strategies.registry import strategy_class


class Published(NamedTuple):
    """Accuracies in percent on mini-ImageNet, 5-way, and what they were trained with."""

    method: str
    network: str
    training: str
    one_shot: float
    five_shot: float
    source: str


PUBLISHED = (
    Published("ProtoNet", "64 filters", "episodes of 30 (1 shot) and 20 ways (5 shots)", 49.42, 68.20,
              "Snell et al. 2017"),
    Published("R2-D2", "96-192-384-512 filters", "to convergence on meta-validation", 51.2, 68.8,
              "Bertinetto et al. 2019"),
    Published("R2-D2", "64 filters", "to convergence on meta-validation", 49.5, 65.4, "Bertinetto et al. 2019"),
    Published("Baseline++", "64 filters", "400 epochs of 16 images a batch, augmented", 48.24, 66.43,
              "Chen et al. 2019"),
    Published("CAVIA", "32 filters", "60,000 iterations of 4 or 2 tasks", 47.24, 59.05, "Zintgraf et al. 2019"),
    Published("CAVIA", "128 filters", "60,000 iterations of 4 or 2 tasks", 49.84, 64.63, "Zintgraf et al. 2019"),
    Published("ANIL", "32 filters", "60,000 iterations of 4 or 2 tasks", 46.7, 61.5, "Raghu et al. 2020"),
    Published("MAML", "32 filters", "60,000 iterations of 4 or 2 tasks", 48.70, 63.11, "Finn et al. 2017"),
)  # fmt: skip

Measured = tuple[Mapping[str, str], Mapping[str, Any], str]
"""A line of the plan, the row, and the command of the run."""


def as_page(rows: Sequence[Measured], core_seconds: float, failed: Sequence[str] = ()) -> str:
    """The whole page, the best first; what is not measured is not there, and what `failed` is named."""
    rows = sorted(rows, key=lambda measured: (measured[1]["shots"], -measured[1]["accuracy"]))
    parts = [
        "# Baselines at one budget\n\nMeta-test accuracy in %, ± the 95 % interval over tasks of 15 queries per class; "
        f"one seed. Each row has {core_seconds / 60:g} minutes of one CPU core for meta-training, not counting "
        "validations and meta-test: as many iterations of `--preset table3` as fit, by the seconds of one in "
        "`plan.csv` (the fastest of a few). Where a strategy has hyper-parameters of its own for the preset, they are "
        "named. So the rows show what each strategy reaches in this time, not what it reaches in the end; one seed "
        "does not rank close results. `km` and `anil` are in Table III with equal iterations instead of equal time.",
        "Made by `python benchmarks/baselines.py`."
        + (f" Failed or refused, as `plan.csv` says: {', '.join(failed)}." if failed else ""),
        markdown_table(
            (
                "strategy",
                "shots",
                "accuracy, %",
                "network",
                "tasks per iteration",
                "iterations",
                "core s per iteration",
                "the strategy's own hyper-parameters",
            ),
            [_measured(planned, row) for planned, row, _ in rows],
        ),
        "## Published, mini-ImageNet 5-way\n\nOther networks and budgets than above. The preset's rates were chosen "
        "for km, anil and maml, not for the others, and its batch norm is transductive: the queries of a task are "
        "normalised together, which published results of other strategies than MAML and ANIL may not do.",
        markdown_table(
            ("method", "1 shot, %", "5 shots, %", "network", "training", "source"),
            [(p.method, f"{p.one_shot:g}", f"{p.five_shot:g}", p.network, p.training, p.source) for p in PUBLISHED],
        ),
        "## Commands\n\n" + "\n".join(f"    {command}" for _, _, command in rows),
    ]
    return "\n\n".join(parts).rstrip() + "\n"


def _measured(planned: Mapping[str, str], row: Mapping[str, Any]) -> tuple[str, ...]:
    accuracy = f"{100 * row['accuracy']:.2f} ± {100 * row['ci95']:.2f}"
    seconds = float(planned["core_seconds_an_iteration"])
    network, batch = f"`{row['backbone']}`", str(row["meta_batch"])
    own = strategy_class(row["algo"]).preset_values.get(("table3", dataset_entry(row["dataset"]).family), {})
    listed = ", ".join(f"{name} {value}" for name, value in own.items())
    counts = (batch, f"{row['iterations']:,}", f"{seconds:.2f}", listed)
    return (f"`{row['algo']}`", str(row["shots"]), accuracy, network, *counts)

"""The outcome of each trial, and `search.csv`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from metakm.io.files import write_text

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from metakm.search.studies import Studies


class Record(NamedTuple):
    """One trial; `accuracy` on meta-validation with the best of the test steps, None unless it is done."""

    algo: str
    number: int
    state: str
    accuracy: float | None
    ci95: float | None
    test_steps: int | None
    by_steps: dict[str, float]
    seconds: float | None
    params: dict[str, Any]


def read_records(studies: Studies) -> list[Record]:
    """The trials of all strategies in the storage."""
    found = studies.all_studies()
    return [_record(algo, trial) for algo, study in found.items() for trial in study.get_trials(deepcopy=False)]


def winner(records: list[Record]) -> Record | None:
    """The best trial, if one was measured; among equals, the earliest."""
    done = [(record.accuracy, -record.number, record) for record in records if record.accuracy is not None]
    return max(done, default=(None,))[-1]


def write_csv(out: Path, records: list[Record]) -> None:
    """Write `search.csv`: one line per trial."""
    lines = []
    for r in records:
        line: dict[str, Any] = {"algo": r.algo, "trial": r.number, "state": r.state, "accuracy": r.accuracy}
        line |= {"ci95": r.ci95, "test_steps": r.test_steps, "seconds": r.seconds}
        line |= {f"accuracy_{steps}": accuracy for steps, accuracy in r.by_steps.items()}
        lines.append(line | r.params)
    table = pd.DataFrame(lines)
    if lines:
        table = table.astype({"test_steps": "Int64"})
    write_text(out / "search.csv", table.to_csv(index=False))


def _record(algo: str, trial: FrozenTrial) -> Record:
    attributes, finished = trial.user_attrs, trial.state.is_finished()
    return Record(
        algo,
        trial.number,
        attributes["state"] if finished else "running",
        trial.value if finished and attributes["state"] == "done" else None,
        attributes.get("ci95"),
        attributes.get("test_steps"),
        attributes.get("by_steps", {}),
        round(attributes["seconds"], 3) if finished else None,
        dict(trial.params),
    )

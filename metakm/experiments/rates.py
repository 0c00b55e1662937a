"""Runs that choose a learning rate (`--tune`): what was tried, and what was best on the validation part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

from metakm.experiments.lines import RecordedExperiment
from metakm.experiments.row import ExperimentRow
from metakm.table.grids import Grid, Layout, TitledList


class Choice(NamedTuple):
    """What a rate is chosen for: one method of an experiment, on one dataset and network, with one preset."""

    experiment: str
    dataset: str
    preset: str
    method: str
    network: str


def tried(runs: Iterable[RecordedExperiment]) -> dict[Choice, list[ExperimentRow]]:
    """The finished runs of each choice, the one to choose first.

    It is the best on the validation part among those of the most iterations: after short runs with many rates, longer
    ones with the best few decide.
    """
    found: dict[Choice, list[ExperimentRow]] = {}
    for row in (run.row for run in runs):
        if row.status == "done" and row.accuracy is None and row.val_accuracy is not None:
            choice = Choice(row.experiment, row.dataset, row.preset, row.method, row.network)
            found.setdefault(choice, []).append(row)
    return {choice: sorted(rows, key=_longest_then_best) for choice, rows in sorted(found.items())}


def _longest_then_best(row: ExperimentRow) -> tuple[float, ...]:
    return (-row.iterations, -cast(float, row.val_accuracy), row.learning_rate, row.residual_start)


def layout_rates(runs: Iterable[RecordedExperiment], problems: Sequence[str] = ()) -> Layout:
    """A grid for each preset, experiment and dataset; the chosen run of a method comes first."""
    header = ("Method", "Network", "Learning rate", "Residual start", "Images", "Epochs", "Validation, %", "Choice")
    grids: dict[str, list[tuple[str, ...]]] = {}
    for choice, rows in tried(runs).items():
        lines = grids.setdefault(f"{choice.experiment}, {choice.dataset}, preset {choice.preset}", [])
        for row in rows:
            settings = (f"{row.learning_rate:g}", f"{row.residual_start:g}", f"{row.n_train:,}", str(row.epochs))
            accuracy = f"{100 * cast(float, row.val_accuracy):.2f}"
            lines.append((choice.method, choice.network, *settings, accuracy, "chosen" if row is rows[0] else ""))
    listings = (
        TitledList("Not read", tuple(problems)),
        TitledList("Notes", () if grids else ("No finished run with --tune was found.",)),
        TitledList("How to read this", ("Chosen: the most accurate of the longest runs on the validation part.",)),
    )
    return Layout(
        tuple(Grid(title, header, tuple(lines)) for title, lines in grids.items()),
        tuple(listing for listing in listings if listing.items),
    )

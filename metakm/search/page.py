"""The page of a search: what was tried, which trial won and by how much, and the command to run the winner."""

from __future__ import annotations

import dataclasses
from typing import Any

import optuna
import pandas as pd

from metakm.cli.progress import duration
from metakm.config import RunConfig
from metakm.io.files import atomic_write, write_text
from metakm.io.markdown import markdown_table
from metakm.learning.statistics import paired_difference
from metakm.run.command_line import command
from metakm.run.loading import read_config
from metakm.search.importance import LEAST_TRIALS, importances, importances_png
from metakm.search.records import Record, read_records, winner, write_csv
from metakm.search.space import refuses, with_values
from metakm.search.studies import Studies
from metakm.search.trial import read_accuracies

PICTURE, SUMMARY = "importances.png", "summary.csv"


def write_page(studies: Studies) -> None:
    """Write `search.csv`, `summary.csv`, `README.md` and, with enough trials, the picture of the importances."""
    records, found = read_records(studies), studies.all_studies()
    write_csv(studies.out, records)
    rows = [_summary_row(studies, algo, [record for record in records if record.algo == algo]) for algo in found]
    write_text(studies.out / SUMMARY, pd.DataFrame(rows).astype({"test_steps": "Int64"}).to_csv(index=False))
    shares = {algo: values for algo, study in found.items() if (values := importances(study))}
    if shares:
        with atomic_write(studies.out / PICTURE) as file:
            file.write(importances_png(shares))
    parts = [_head(studies), _summary_table(rows)]
    for algo, study in found.items():
        parts.append(_strategy(studies, algo, study, [record for record in records if record.algo == algo]))
    parts.append(_importance(list(shares)))
    write_text(studies.out / "README.md", "\n\n".join(parts) + "\n")


def _head(studies: Studies) -> str:
    plan, protocol = studies.plan, studies.plan.protocol()
    config = plan.searches[0].config
    steps = ", ".join(map(str, protocol["test_steps"]))
    space = "\n".join(f"| `{field}` | {dimension} |" for field, dimension in plan.space.items())
    return f"""# Search: {config.setting}

Accuracies are those of meta-validation; the meta-test was not used. Each trial is {config.iterations:,} iterations of
meta-training with seed {config.seed}; its last model is measured on {protocol["tasks"]} tasks, the same for all, with
{steps} inner steps, and the best of these is kept. Trials whose best validation so far is below the median of the
complete ones at the same iteration are stopped (pruned). `search.csv` has every trial, `summary.csv` one row per
strategy. To continue or repeat it:

    {studies.plan.command}

The winner was picked for its accuracy, so on new tasks it will be a little lower than here. ± are half-widths of 95 %
intervals over tasks; those of differences are paired. They do not cover other seeds.

| field | values |
|---|---|
{space}"""


def _summary_row(studies: Studies, algo: str, own: list[Record]) -> dict[str, Any]:
    """What a strategy was given, what came out, and the command of its winner; None where no trial was measured."""
    best = winner(own)
    spent = {"algo": algo, "trials": len(own), "measured": sum(r.accuracy is not None for r in own)}
    spent["seconds"] = round(sum(record.seconds or 0.0 for record in own), 1)
    if best is None:
        return spent | dict.fromkeys(("accuracy", "ci95", "test_steps", "trial", "command"))
    measured = {"accuracy": best.accuracy, "ci95": best.ci95, "test_steps": best.test_steps, "trial": best.number}
    return spent | measured | {"command": command(winning_config(studies, best))}


def _summary_table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        found = ("", "")
        if row["accuracy"] is not None:
            found = (f"{_percent(row['accuracy'])} ± {_percent(row['ci95'])}", str(row["test_steps"]))
        given = (f"`{row['algo']}`", row["trials"], row["measured"], f"{row['seconds']:.0f}")
        lines.append((*given, *found))
    return markdown_table(("strategy", "trials", "measured", "seconds of training", "best, %", "inner steps"), lines)


def _strategy(studies: Studies, algo: str, study: optuna.Study, own: list[Record]) -> str:
    counts = {state: sum(record.state == state for record in own) for state in dict.fromkeys(r.state for r in own)}
    tried = ", ".join(f"{count} {state}" for state, count in counts.items()) or "none"
    seconds = sum(record.seconds or 0.0 for record in own)
    lines = [f"## {algo}", f"{len(own)} trials: {tried}. {seconds:.0f} s of training ({duration(seconds)})."]
    dropped = study.user_attrs["dropped"]
    for reason in dict.fromkeys(dropped.values()):
        fields = ", ".join(f"`{field}`" for field, why in dropped.items() if why == reason)
        lines.append(f"Not varied: {fields} ({reason}).")
    if outside := study.user_attrs.get("outside"):
        values = ", ".join(f"`{field}` {_short(value)}" for field, value in outside.items())
        lines.append(f"Not tried, as they lie outside the space and the test steps: the preset's {values}.")
    best = winner(own)
    if best is None:
        lines.append("No trial was measured.")
        return "\n\n".join(lines)
    values = ", ".join(f"`{field}` {_short(value)}" for field, value in best.params.items())
    lines += [
        f"Best: trial {best.number}, {_percent(best.accuracy)} ± {_percent(best.ci95)} % with {best.test_steps} inner "
        f"steps: {values}.",
        *_differences(studies, best, own),
    ]
    config = winning_config(studies, best)
    lines.append(f"    {command(config)}")
    for follower in study.user_attrs["followers"]:
        lines += [
            f"{follower['algo']} takes the same values, as far as it has the options:",
            f"    {command(_following(RunConfig.from_json(follower), best))}",
        ]
    return "\n\n".join(lines)


def winning_config(studies: Studies, best: Record) -> RunConfig:
    """The settings of a run that trains the trial's model and tests it with the best number of steps."""
    config = read_config(studies.folder(best.algo, best.number))
    assert best.test_steps is not None  # it was measured
    return dataclasses.replace(config, test_inner_steps=best.test_steps, select="last")


def _following(config: RunConfig, best: Record) -> RunConfig:
    """The settings of another strategy with those values of a trial that it has options for, by its own names."""
    own = f"{best.algo}."
    named = {f"{config.algo}.{f.removeprefix(own)}" if f.startswith(own) else f: v for f, v in best.params.items()}
    values = {field: value for field, value in named.items() if not refuses(config.algo, field)}
    return with_values(config, {**values, "test_inner_steps": best.test_steps, "select": "last"})


def _differences(studies: Studies, best: Record, own: list[Record]) -> list[str]:
    """The winner compared with the first trial, which has the values of the preset, and with the runner-up."""
    others = [record for record in own if record.accuracy is not None and record is not best]
    first = next((record for record in others if record.number == 0), None)
    second = winner(others)
    named = [("the preset's values, where the space has them", first), ("the next best", second)]
    lines = [f"- {_difference(studies, best, other)} (trial {other.number}, {name})" for name, other in named if other]
    return ["\n".join(lines)] if lines else []


def _difference(studies: Studies, best: Record, other: Record) -> str:
    a, b = (read_accuracies(studies.folder(r.algo, r.number), r.test_steps or 0) for r in (best, other))
    paired = paired_difference(100 * a[None], 100 * b[None])
    assert paired.tasks_ci95 is not None  # there are at least 2 tasks
    verdict = "" if paired.mean > paired.tasks_ci95 else "; within noise"
    return f"{paired.mean:.2f} ± {paired.tasks_ci95:.2f} points above {_percent(other.accuracy)} %{verdict}"


def _importance(algos: list[str]) -> str:
    if not algos:
        return f"Importances of the fields need at least {LEAST_TRIALS} measured trials of a strategy."
    return (
        "## What mattered\n\nHow much each field separates the best tenth of the measured trials from the rest "
        f"(PED-ANOVA). With few trials it is only a hint.\n\n![Importances of the fields]({PICTURE})"
    )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

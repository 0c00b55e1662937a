"""The page of `benchmarks/what_adapts.py`, made of its lines alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metakm.io.markdown import markdown_table
from metakm.table.setting import Setting

Row = Mapping[str, str]
_HEAD = """# Does adaptation beyond the head matter at test time?

Accuracy in percent of trained models on their meta-test tasks, with as many queries per class as shots. *All*: the
inner loop adapts what it adapts in training; *head*: the head alone, all other inner rates being 0; *gap*: all minus
head, in pairs, with its 95 % interval over the tasks: it holds for that trained model. Its gaps at different steps
are all measured on the same tasks, so they are not independent.

The head alone is at a disadvantage: its start and its learning rates were trained for an inner loop that adapts more.
So adaptation at the test contributes at most the gap. It does not say why one strategy is above another, which was
trained otherwise. There is no column for one step: a head that starts at zero, as all but `km-proto`'s do, lets no
gradient through, and in the first step it moves alone.
"""
_END = """
Tested on {tasks} tasks. Made by `python benchmarks/what_adapts.py results/table3` from `what-adapts.csv`, on the
weights beside each row.
"""


def page_text(rows: Sequence[Row]) -> str:
    """The page: a table for each setting, and what they say."""
    settings = sorted({_setting(row) for row in rows})
    tables = [_table(setting, [row for row in rows if _setting(row) == setting]) for setting in settings]
    counts = sorted({int(row["n_tasks"]) for row in rows})
    return "\n".join([_HEAD, *tables, _summary(rows)]) + _END.format(tasks=" or ".join(map(str, counts)) or "no")


def _setting(row: Row) -> Setting:
    return Setting(row["dataset"], int(row["ways"]), int(row["shots"]))


def _table(setting: Setting, rows: Sequence[Row]) -> str:
    steps = sorted({int(row["test_inner_steps"]) for row in rows})
    lines = []
    for run in sorted({(row["algo"], int(row["seed"]), int(row["iterations"]), row["run_id"]) for row in rows}):
        own = {int(row["test_inner_steps"]): row for row in rows if row["run_id"] == run[3]}
        name = f"`{run[0]}`, seed {run[1]}, {run[2]:,} iterations"
        for part in ("all", "head", "gap"):
            cells = [_cell(own[count], part) if count in own else "" for count in steps]
            lines.append((f"{name}: {part}", *cells))
    return f"## {setting.title}\n\n{markdown_table(('Inner steps', *steps), lines)}\n"


def _cell(row: Row, part: str) -> str:
    value = 100 * float(row[part])
    return f"{value:+.2f} ± {100 * float(row['gap_ci95']):.2f}" if part == "gap" else f"{value:.2f}"


def _summary(rows: Sequence[Row]) -> str:
    """In how many cells the gap exceeds its interval."""
    if not rows:
        return "Nothing is measured yet.\n"
    above, below = (sum(sign * float(row["gap"]) > float(row["gap_ci95"]) for row in rows) for sign in (1, -1))
    largest = max(rows, key=lambda row: abs(float(row["gap"])))
    return (
        f"Gaps: {len(rows)}; above zero by more than their interval: {above}; below: {below}. The largest is "
        f"{_cell(largest, 'gap')} points: `{largest['algo']}`, {_setting(largest).title}, "
        f"{largest['test_inner_steps']} steps.\n"
    )

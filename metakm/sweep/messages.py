"""A sweep as text: its plan and its outcome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from metakm.sweep.job import JobOutcome
from metakm.sweep.plan import Planned, inspect


def plan_text(plan: Iterable[Planned]) -> str:
    """A line for each run: state, name, note."""
    return "\n".join(f"{p.state:<10} {p.config.run_id}  {p.note}".rstrip() for p in plan)


def counts_text(words: Iterable[str]) -> str:
    """The number of runs in each state, such as `2 done, 1 to do`."""
    return ", ".join(f"{n} {word}" for word, n in sorted(Counter(words).items()))


def outcome_text(plan: Sequence[Planned], outcomes: Mapping[str, JobOutcome]) -> str:
    """The runs that are not done, with the reason, and a count of all; runs of other processes are inspected again."""
    lines, words = [], []
    for planned in plan:
        run_id = planned.config.run_id
        outcome = outcomes.get(run_id)
        word: str = outcome.kind if outcome else "not started" if planned.missing else planned.state
        note = outcome.note if outcome else planned.note
        if word == "in use" and (now := inspect(planned.config)).state != word:
            word, note = "done elsewhere" if now.state == "done" else now.state, now.note
        words.append("done before" if word == "done" and outcome is None else word)
        if not word.startswith("done"):
            lines.append(f"{word:<12} {run_id}  {note}".rstrip())
    return "\n".join([*lines, counts_text(words)])

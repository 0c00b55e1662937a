"""A sweep in words: its plan before, its outcome after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from metakm.scheduling.job import Outcome
from metakm.scheduling.plan import Planned


def plan_text(plan: Iterable[Planned]) -> str:
    """A line for each run: state, name, note."""
    return "\n".join(f"{p.state:<10} {p.config.run_id}  {p.note}".rstrip() for p in plan)


def counts_text(words: Iterable[str]) -> str:
    """How many of each, such as `2 done, 1 to do`."""
    return ", ".join(f"{n} {word}" for word, n in sorted(Counter(words).items()))


def outcome_text(plan: Sequence[Planned], outcomes: Mapping[str, Outcome]) -> str:
    """What did not end well, by name and reason, and a count of all."""
    lines, words = [], []
    for planned in plan:
        run_id = planned.config.run_id
        outcome = outcomes.get(run_id)
        word = outcome.kind if outcome else "not started" if planned.missing else planned.state
        note = outcome.note if outcome else planned.note
        words.append("done before" if word == "done" and outcome is None else word)
        if word != "done":
            lines.append(f"{word:<12} {run_id}  {note}".rstrip())
    return "\n".join([*lines, counts_text(words)])

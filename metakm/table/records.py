"""The table as flat records for other programs: the CSV and JSON formats. Accuracies in percent, six decimals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metakm.table.blocks import Table
from metakm.table.cells import Cell
from metakm.table.layouts.full import hidden_rows
from metakm.table.pairing import Comparison
from metakm.table.published import Published

Record = dict[str, Any]
Records = dict[str, list[Record]]  # by kind
RECORD_COLUMNS = (
    "kind", "block", "method", "algo", "preset", "changes", "dataset", "ways", "shots", "bn_mode", "accuracy_percent",
    "ci95_percent", "seeds_ci95_percent", "tasks_ci95_percent", "n_seeds", "n_tasks", "adapted_parameters",
    "ratio_to_maml", "train_hours", "runs", "plus_minus_percent", "plus_minus_meaning", "source", "first", "second",
    "difference_points", "difference_ci95_points", "difference_seeds_ci95_points", "difference_tasks_ci95_points",
    "seeds", "verdict", "seeds_to_tell", "claimed", "run_id", "reason",
)  # fmt: skip


def table_records(table: Table) -> Records:
    """Published and measured cells, comparisons beside the paper's claims, and everything listed below."""
    cells: Records = {"published": [], "measured": []}
    for block in table.blocks:
        for row in block.rows:
            for setting in block.settings:
                cell = row.cells.get(setting)
                if isinstance(cell, Published):
                    cells["published"].append({"block": block.title, **_published(cell)})
                elif cell is not None:
                    cells["measured"].append({"block": block.title, **_measured(cell)})
    claimed = {(c.setting, c.peer): "above" if c.claimed else "none" for c in table.claims}
    compared = [
        {**_comparison(c), "claimed": claimed.get((c.first.setting, c.second.algo)) if c.first.algo == "km" else None}
        for c in table.comparisons
    ]
    open_claims = [
        {
            **c.setting._asdict(),
            "first": "km",
            "second": c.peer,
            "verdict": "not measured",
            "claimed": claimed[c.setting, c.peer],
        }
        for c in table.claims
        if not c.measured
    ]
    return {**cells, "comparison": compared + open_claims, **_remark_records(table)}


def comparison_records(comparisons: Sequence[Comparison], refused: Sequence[str], table: Table) -> Records:
    """The comparisons asked for, those that could not be made, and everything listed below."""
    return {
        "comparison": [_comparison(c) for c in comparisons],
        "not compared": [{"reason": reason} for reason in refused],
        **_remark_records(table),
    }


def _remark_records(table: Table) -> Records:
    return {
        "left out": [
            {"runs": item.run.name, "run_id": item.run.row.run_id, "reason": item.reason} for item in table.left_out
        ],
        "problem": [{"runs": problem.name, "reason": problem.reason} for problem in table.problems],
        "note": [{"reason": note} for note in (*table.notes, *hidden_rows(table))],
    }


def _published(cell: Published) -> Record:
    return {
        "method": cell.method,
        **cell.setting._asdict(),
        "accuracy_percent": cell.accuracy,
        "plus_minus_percent": cell.plus_minus,
        "plus_minus_meaning": cell.meaning,
        "source": cell.source,
    }


def _measured(cell: Cell) -> Record:
    return {
        "method": cell.protocol.label,
        "algo": cell.algo,
        "preset": cell.preset,
        "changes": "; ".join(f"{name}={value}" for name, value in cell.protocol.changes),
        **cell.setting._asdict(),
        "bn_mode": cell.bn_mode,
        "accuracy_percent": _rounded(cell.mean),
        "ci95_percent": _rounded(cell.ci95),
        "seeds_ci95_percent": _rounded(cell.seeds_ci95),
        "tasks_ci95_percent": _rounded(cell.tasks_ci95),
        "n_seeds": cell.n_seeds,
        "n_tasks": cell.n_tasks,
        "adapted_parameters": cell.adapted_parameters,
        "ratio_to_maml": _rounded(cell.ratio_to_maml),
        "train_hours": _rounded(cell.train_hours),
        "runs": "; ".join(run.name for run in cell.runs),
    }


def _comparison(c: Comparison) -> Record:
    return {
        **c.first.setting._asdict(),
        "first": c.first.protocol.label,
        "second": c.second.protocol.label,
        "difference_points": _rounded(c.difference),
        "difference_ci95_points": _rounded(c.ci95),
        "difference_seeds_ci95_points": _rounded(c.seeds_ci95),
        "difference_tasks_ci95_points": _rounded(c.tasks_ci95),
        "seeds": " ".join(map(str, c.seeds)),
        "n_tasks": c.first.n_tasks,
        "verdict": c.verdict,
        "seeds_to_tell": c.seeds_to_tell,
        "reason": "; ".join(c.caveats) or None,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)

"""The page of pretrained.py, from its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pretrained import ADAPTED, SOLVERS, scores
from pretrained_data import SOURCES

from metakm.io.files import write_text
from metakm.learning.statistics import paired_difference
from metakm.models.pretrained import LITE0

Row = Mapping[str, str]
_TITLES = {"norm": "norm + head", "lora": "LoRA"}


def write_page(out: Path, rows: Sequence[Row]) -> Path:
    """OUT/README.md."""
    path = out / "README.md"
    write_text(path, "\n".join(page_lines(rows)) + "\n")
    return path


def page_lines(rows: Sequence[Row]) -> list[str]:
    """A table for each source, number of ways and size."""
    lines = [
        "# A meta-trained base on classes that it never saw",
        "",
        "Accuracy in percent over tasks, the same for all methods, with 10 queries per class and 95 % intervals over "
        "tasks. Written by `python benchmarks/pretrained.py --page` from rows.csv, which the same command without "
        "`--page` makes. Differences are from the best plain method with the same number of photos, paired over tasks.",
    ]
    there = {row["method"] for row in rows}
    if len({row["tasks"] for row in rows}) > 1:
        lines[-1] += " Cells with fewer tasks say so; their differences, and the best of them, are over these tasks."
    missing = [_TITLES.get(m, m) for m in (*SOLVERS, *ADAPTED) if m not in there]
    if missing:
        lines += ["", f"Not measured yet: {', '.join(missing)}. So the best plain method may do better than shown."]
    for group in dict.fromkeys((row["source"], int(row["ways"]), int(row["side"])) for row in rows):
        lines += ["", *_table(rows, *group)]
    return lines


def _table(rows: Sequence[Row], source: str, ways: int, side: int) -> list[str]:
    own = [r for r in rows if (r["source"], int(r["ways"]), int(r["side"])) == (source, ways, side)]
    shots = sorted({int(row["shots"]) for row in own})
    best = {k: _best_plain(own, k) for k in shots}
    seen = sorted({row["seen"] for row in own if row["seen"]})
    lines = [
        f"## {SOURCES[source].title}: {ways}-way, {side} px",
        "",
        *([f"{'; '.join(seen)}.", ""] if seen else []),
        "| base | method | " + " | ".join(f"{k} photo{'s' if k > 1 else ''}" for k in shots) + " |",
        "|---|---|" + "---|" * len(shots),
    ]
    for base, method in dict.fromkeys((row["base"], row["method"]) for row in own):
        cells = [_cell(own, base, method, k, best[k]) for k in shots]
        lines.append(f"| {base} | {_TITLES.get(method, method)} | " + " | ".join(cells) + " |")
    return lines


def _found(rows: Sequence[Row], base: str, method: str, shots: int) -> Row | None:
    return next((r for r in rows if (r["base"], r["method"], int(r["shots"])) == (base, method, shots)), None)


def _best_plain(rows: Sequence[Row], shots: int) -> Row | None:
    """Of all that was done with the plain base; where some of it is of fewer tasks, by these."""
    plain = [row for row in rows if row["base"] == LITE0 and int(row["shots"]) == shots]
    least = min((int(row["tasks"]) for row in plain), default=0)
    return max(plain, key=lambda row: float(scores(row)[:least].mean()), default=None)


def _cell(rows: Sequence[Row], base: str, method: str, shots: int, best: Row | None) -> str:
    row = _found(rows, base, method, shots)
    if row is None:
        return ""
    text = f"{100 * float(row['accuracy']):.1f} ± {100 * float(row['ci95']):.1f}"
    if int(row["tasks"]) < max(int(each["tasks"]) for each in rows):
        text += f" ({row['tasks']} tasks)"
    if best is None or base == LITE0:
        return f"**{text}**" if row is best else text
    ours, theirs = scores(row), scores(best)
    common = min(len(ours), len(theirs))
    apart = paired_difference(ours[None, :common], theirs[None, :common])
    width = f" ± {100 * apart.tasks_ci95:.1f}" if apart.tasks_ci95 is not None else ""
    return f"{text} ({100 * apart.mean:+.1f}{width})"

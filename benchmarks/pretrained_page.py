"""The page of pretrained.py, from its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pretrained import ADAPTED, SOLVERS, scores
from pretrained_data import SOURCES

from metakm.errors import UserError
from metakm.io.files import write_text
from metakm.io.markdown import markdown_table
from metakm.learning.statistics import PairedDifference, paired_difference
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
        "`--page` makes. A difference in brackets is the smallest of those from all methods on the plain base with the "
        "same number of photos, each paired over the tasks that both have.",
    ]
    there = {row["method"] for row in rows}
    if len({row["tasks"] for row in rows}) > 1:
        lines[-1] += " Cells with fewer tasks say so."
    missing = [_TITLES.get(m, m) for m in (*SOLVERS, *ADAPTED) if m not in there]
    if missing:
        lines += ["", f"Not measured yet: {', '.join(missing)}. So a plain method may come closer than shown."]
    for group in dict.fromkeys((row["source"], int(row["ways"]), int(row["side"])) for row in rows):
        lines += ["", *_table(rows, *group)]
    return lines


def _table(rows: Sequence[Row], source: str, ways: int, side: int) -> list[str]:
    own = [r for r in rows if (r["source"], int(r["ways"]), int(r["side"])) == (source, ways, side)]
    shots = sorted({int(row["shots"]) for row in own})
    seen = sorted({row["seen"] for row in own if row["seen"]})
    lines = [
        f"## {SOURCES[source].title}: {ways}-way, {side} px",
        "",
        *([f"{'; '.join(seen)}.", ""] if seen else []),
    ]
    header = ("base", "method", *(f"{k} photo{'s' if k > 1 else ''}" for k in shots))
    cells = [
        (base, _TITLES.get(method, method), *(_cell(own, base, method, k) for k in shots))
        for base, method in dict.fromkeys((row["base"], row["method"]) for row in own)
    ]
    return [*lines, *markdown_table(header, cells).splitlines()]


def _found(rows: Sequence[Row], base: str, method: str, shots: int) -> Row | None:
    return next((r for r in rows if (r["base"], r["method"], int(r["shots"])) == (base, method, shots)), None)


def _cell(rows: Sequence[Row], base: str, method: str, shots: int) -> str:
    row = _found(rows, base, method, shots)
    if row is None:
        return ""
    text = f"{100 * float(row['accuracy']):.1f} ± {100 * float(row['ci95']):.1f}"
    if int(row["tasks"]) < max(int(each["tasks"]) for each in rows):
        text += f" ({row['tasks']} tasks)"
    plain = [each for each in rows if each["base"] == LITE0 and int(each["shots"]) == shots]
    if base == LITE0 or not plain:
        return text
    apart = min((_difference(row, each) for each in plain), key=lambda found: found.mean)
    width = f" ± {100 * apart.tasks_ci95:.1f}" if apart.tasks_ci95 is not None else ""
    return f"{text} ({100 * apart.mean:+.1f}{width})"


def _difference(row: Row, plain: Row) -> PairedDifference:
    """Over the first tasks, which both have.

    Raises:
        UserError: they are of other tasks.
    """
    if row["tasks"] == plain["tasks"] and row["episodes_hash"] != plain["episodes_hash"]:
        both = (f"{each['base']}, {each['method']}, {each['shots']} photos" for each in (row, plain))
        raise UserError(f"Expected rows of the same tasks, got others in {' and '.join(both)}; measure one again")
    ours, theirs = scores(row), scores(plain)
    common = min(len(ours), len(theirs))
    return paired_difference(ours[None, :common], theirs[None, :common])

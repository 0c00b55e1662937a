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
        "Accuracy in %, ± the 95 % interval over tasks; all methods share the tasks, with 10 queries per class. In "
        "brackets: the smallest gain over any method on the plain network with as many photos, each paired over the "
        "tasks that both have. `centroid`, `ridge` and `probe` (logistic regression) are heads on frozen features; "
        "norm + head and LoRA also adapt the network.",
    ]
    there = {row["method"] for row in rows}
    if len({row["tasks"] for row in rows}) > 1:
        lines[-1] += " Cells with fewer tasks say so."
    missing = [_TITLES.get(m, m) for m in (*SOLVERS, *ADAPTED) if m not in there]
    if missing:
        lines += ["", f"Not measured yet: {', '.join(missing)}. So a plain method may come closer than shown."]
    for group in dict.fromkeys((row["source"], int(row["ways"]), int(row["side"])) for row in rows):
        lines += ["", *_table(rows, *group)]
    return [*lines, "", *_COMMANDS.splitlines()]


_COMMANDS = """## Commands

This page is written by `python benchmarks/pretrained.py --page` from the rows in `rows.csv`, which are made by

    python benchmarks/pretrained.py --methods centroid ridge --sides 96 128 160
    python benchmarks/pretrained.py --methods probe --sides 96 --tasks 100
    python benchmarks/pretrained.py --methods norm lora --sides 96
    python benchmarks/pretrained.py --methods centroid ridge --sides 96 --bases without-groceries=RUN=all-grocery,cifar10 without-flowers=RUN=all-flowers,cifar10

The runs of the last command are that of docs/pretrained.md without one `--dataset` and with `--iterations 200`.
`flowers-only` and `grocery-only` were made likewise, with one `--dataset` and `--iterations 120`, before there were
columns with 25 photos. `fit-seconds.csv` is made by `OMP_NUM_THREADS=1 python benchmarks/fit_seconds.py`."""  # noqa: E501


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

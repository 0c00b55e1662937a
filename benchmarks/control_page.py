"""What KM's inner loop adds in training: `python benchmarks/control_page.py` writes results/control/README.md.

The page compares the rows of the control, `modulated_anil.py`, with those of KM and ANIL in Table III, task by task.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tyro
from tyro.conf import Positional

from metakm.cli.exit_code import REPEAT, exit_code
from metakm.errors import UserError
from metakm.io.files import write_text
from metakm.io.markdown import markdown_table
from metakm.table.cells import Cell, build_cells
from metakm.table.collect import read_runs
from metakm.table.pairing import compare
from metakm.table.setting import TABLE3, Setting

CONTROL = "modulated-anil"
HEAD = """# What does KM's inner loop add?

KM differs from ANIL in two ways. In meta-training the outer loop reaches the kernels through the modulators,
W~ = g(W; U), and the inner loop adapts the modulators and the convolution biases, not only the head. The control
`modulated-anil` has the first alone: it is ANIL on the kernels W~, whose W and U the outer loop trains. So *KM minus
the control* is what adapting more than the head adds, and *the control minus ANIL* what training through the modulators
adds.

Meta-test accuracy in %, and differences in points between models tested on the same tasks. ±: the 95 % interval over
seeds and tasks, with one seed over tasks alone, which holds for these trained models; in parentheses the number of
seeds.

"""
TAIL = """
Made by `python benchmarks/control_page.py`, from the rows of KM and ANIL in `results/table3` and from those here, made
by

    OMP_NUM_THREADS=1 python -m metakm.run --preset table3 --algo modulated-anil --plugin benchmarks/modulated_anil.py
    --dataset DATASET --ways WAYS --shots SHOTS --out results/control
"""


def page_text(control: Path, table3: Path) -> str:
    """The page of the rows below both folders, with the settings that have a row of the control."""
    cells, _ = build_cells((*read_runs(table3).runs, *read_runs(control).runs))
    known = {(cell.algo, cell.setting): cell for cell in cells}
    settings = [setting for setting in TABLE3 if (CONTROL, setting) in known]
    if not settings:
        raise UserError(f"Expected rows of {CONTROL} below {control}, got none; train it (see {Path(__file__).name})")

    def line(label: str, first: str, second: str | None = None) -> tuple[str, ...]:
        return label, *(_text(known, setting, first, second) for setting in settings)

    lines = [
        line("`km`", "km"),
        line("`modulated-anil`, the control", CONTROL),
        line("`anil`", "anil"),
        line("KM minus the control", "km", CONTROL),
        line("the control minus ANIL", CONTROL, "anil"),
    ]
    return HEAD + markdown_table(("", *(setting.title for setting in settings)), lines) + "\n" + TAIL


def _text(known: dict[tuple[str, Setting], Cell], setting: Setting, algo: str, other: str | None) -> str:
    """An accuracy, or a difference; empty where a row is missing."""
    cells = [known.get((name, setting)) for name in (algo, *([other] if other else []))]
    first, second = cells[0], cells[-1]
    if first is None or second is None:
        return ""
    if other is None:
        return f"{first.mean:.2f} ± {first.ci95:.2f} ({first.n_seeds})"
    found = compare(first, second)
    return f"{found.difference:+.2f} ± {found.ci95:.2f} ({len(found.seeds)})"


def main(control: Positional[Path] = Path("results/control"), table3: Path = Path("results/table3")) -> int:
    """Write the page. Exit code: 0 done, 2 a user error.

    Args:
        control: folder of the control's rows.
        table3: folder of the rows of KM and ANIL.
    """
    write_text(control / "README.md", page_text(control, table3))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main), REPEAT))

"""What KM's inner loop adds in training: `python benchmarks/control_page.py` writes results/control/README.md.

The page compares the rows of the control, `modulated_anil.py`, with those of KM and ANIL in Table III, task by task.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
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
from metakm.table.setting import TABLE3

CONTROL = "modulated-anil"
NAMES = {"km": "KM", "anil": "ANIL", "maml": "MAML", CONTROL: "the control"}
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
    settings = {cell.setting for cell in cells if cell.algo == CONTROL}
    if not settings:
        raise UserError(f"Expected rows of {CONTROL} below {control}, got none; train it (see {Path(__file__).name})")
    differences = (("km", CONTROL), (CONTROL, "anil"))
    table = comparison_table([cell for cell in cells if cell.setting in settings], ("km", CONTROL, "anil"), differences)
    return HEAD + table + "\n" + TAIL


def comparison_table(cells: Sequence[Cell], algos: Sequence[str], differences: Sequence[tuple[str, str]]) -> str:
    """Accuracies, and differences task by task, by setting; empty where a row is missing."""
    known = {(cell.algo, cell.setting): cell for cell in cells}
    found = {cell.setting for cell in cells}
    settings = [setting for setting in dict.fromkeys((*TABLE3, *sorted(found))) if setting in found]

    def line(label: str, *algos: str) -> tuple[str, ...]:
        return label, *(_text([known.get((algo, setting)) for algo in algos]) for setting in settings)

    lines = [line(f"`{algo}`{', the control' if algo == CONTROL else ''}", algo) for algo in algos]
    lines += [line(f"{NAMES[first]} minus {NAMES[second]}", first, second) for first, second in differences]
    return markdown_table(("", *(setting.title for setting in settings)), lines)


def _text(cells: Sequence[Cell | None]) -> str:
    """An accuracy, or a difference; empty where a row is missing."""
    first, second = cells[0], cells[-1]
    if first is None or second is None:
        return ""
    if len(cells) == 1:
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

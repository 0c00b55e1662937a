"""Trained models tested on more tasks than Table III has: `OMP_NUM_THREADS=1 python benchmarks/more_tasks.py`.

On mini-ImageNet 1-shot, 600 tasks of five query images leave intervals of nearly two points. More tasks, the first of
which are the table's, narrow them. Adds a row for each run to results/more-tasks, and writes README.md there. The same
command goes on where the last one stopped; `--page` writes the page alone.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch
import tyro
from control_page import CONTROL, NAMES, comparison_table
from tyro.conf import Positional

from metakm.cli.exit_code import REPEAT, exit_code
from metakm.errors import UserError
from metakm.io.files import write_text
from metakm.learning.malloc import keep_freed_memory
from metakm.registry import load_plugin
from metakm.run import provenance
from metakm.run.evaluate import RunEvaluation
from metakm.run.folder import RunFolder
from metakm.run.loading import load_run
from metakm.run.row import ResultRow
from metakm.table.cells import build_cells
from metakm.table.collect import read_runs

RUNS = tuple(
    Path("results") / folder / "mini-imagenet-5w1s" / algo / "seed0"
    for folder, algo in (("table3", "km"), ("table3", "anil"), ("table3", "maml"), ("control", CONTROL))
)
DIFFERENCES = (("km", "anil"), ("km", "maml"), ("km", CONTROL), (CONTROL, "anil"))
HEAD = """# Table III's models on more tasks

The models of `results/table3` and of the control in `results/control`, each tested on {tasks:,} meta-test tasks, the
first of which are those of its own row; all else is the same. Accuracy in %, and differences in points between models
tested on the same tasks. ±: the 95 % interval over tasks, which holds for these trained models; in parentheses the
number of seeds.

"""
END = """
Made by `OMP_NUM_THREADS=1 python benchmarks/more_tasks.py`.
"""


def test_again(run: Path, tasks: int, out: Path) -> ResultRow | None:
    """Test a finished run on its first `tasks` tasks, and write its row below `out`; None if there is one.

    Raises:
        UserError: a run that is not finished, or has no weights.
    """
    own = RunFolder(run).read_finished_row()
    if own is None:
        raise UserError(f"Expected a finished run, got {run}; train it (see results/README.md)")
    prepared = RunEvaluation(load_run(run), "test", {"eval_tasks": tasks})
    folder = RunFolder(out / prepared.config.setting / own["algo"] / run.name)
    there = folder.read_finished_row()
    if there is not None and there["run_id"] == prepared.config.run_id:
        return None
    tested = prepared.evaluate()
    measured = prepared.columns(tested)
    origin = provenance.both({name: own[name] for name in provenance.ORIGIN}, measured)
    row = ResultRow(**{**own, **measured, **origin})
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_config(dataclasses.replace(prepared.config, out=out, data_root=None).to_json())
    folder.write_tasks(tested.accuracies)
    folder.write_row(row)
    return row


def page_text(out: Path) -> str:
    """The page of the rows below a folder."""
    cells, _ = build_cells(read_runs(out).runs)
    if not cells:
        raise UserError(f"Expected rows below {out}, got none; run {Path(__file__).name} without --page")
    algos = {cell.algo for cell in cells}
    differences = [pair for pair in DIFFERENCES if algos.issuperset(pair)]
    table = comparison_table(cells, [algo for algo in NAMES if algo in algos], differences)
    return HEAD.format(tasks=cells[0].n_tasks) + table + "\n" + END


def main(
    runs: Positional[tuple[Path, ...]] = RUNS,
    tasks: int = 6000,
    out: Path = Path("results/more-tasks"),
    threads: int = 1,
    page: bool = False,
) -> int:
    """Test what has no row yet, and write the page. Exit code: 0 done, 2 a user error, 130 interrupted.

    Args:
        runs: folders of finished runs, with weights.
        tasks: of each run's meta-test, from the first on.
        out: folder of the rows.
        threads: of PyTorch.
        page: write the page from the rows, and end.
    """
    keep_freed_memory()
    torch.set_num_threads(threads)
    load_plugin(Path(__file__).with_name("modulated_anil.py"))
    for run in () if page else runs:
        row = test_again(run, tasks, out)
        if row is not None:
            print(f"{row.run_id}: {100 * row.accuracy:.2f} ± {100 * row.ci95:.2f}", flush=True)
    write_text(out / "README.md", page_text(out))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main), REPEAT))

"""What was trained on mini-ImageNet, tested on other photographs: `python benchmarks/cross_domain.py results/table3`.

Every trained model below the folder is tested by `python -m metakm evaluate`, whose rows go below `cross-domain/`
beside that folder; README.md there has the table of these rows and of the models' own tests. The same command goes on
where the last one stopped; `--page` writes the page alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import tyro
from tyro.conf import Positional

from metakm.cli.exit_code import REPEAT, exit_code
from metakm.errors import UserError
from metakm.io.files import write_text
from metakm.learning.malloc import keep_freed_memory
from metakm.run.evaluate import main as evaluate
from metakm.run.folder import RunFolder
from metakm.run.loading import TrainedRun, load_run
from metakm.table.blocks import build_table
from metakm.table.collect import read_runs
from metakm.table.rendering import render_table

TESTED = ("flowers", "grocery-store")
HEAD = """# Trained on one dataset, tested on others

Made by `python benchmarks/cross_domain.py results/table3`: the rows by `python -m metakm evaluate` on the weights
beside each run's row, the table by `python -m metakm.table --layout cross-domain --format markdown`.
Flowers-102 was stored at 64 px and enlarged to 84; Grocery Store was stored with short sides of 128 px.

"""


def trained_runs(folder: Path, dataset: str) -> Iterator[tuple[TrainedRun, str]]:
    """Finished runs on a dataset that have weights, and the ids in their rows."""
    for weights in sorted(folder.rglob("weights.safetensors")):
        row = RunFolder(weights.parent).read_row()
        if row is not None and (row["dataset"], row["status"]) == (dataset, "done"):
            yield load_run(weights.parent), row["run_id"]


def test_elsewhere(run: TrainedRun, run_id: str, dataset: str, out: Path) -> int:
    """Write the row of a run on another dataset, unless there is one; return the command's exit code."""
    channels, side, _ = run.image_shape
    setting = f"{dataset}-{run.config.ways}w{run.config.shots}s{'-grey' if channels == 1 else ''}"
    row = RunFolder(out / run_id / setting).read_row()
    if row is not None and row["n_tasks"] == run.config.eval_tasks:
        return 0
    flags = ["--dataset", dataset, "--image-size", str(side), "--out", str(out), *(["--grey"] if channels == 1 else [])]
    return evaluate([str(run.folder), *flags])


def page_text(results: Path) -> str:
    """The page of all rows below a folder."""
    return HEAD + render_table(build_table(read_runs(results)), "markdown", "cross-domain")


def main(
    runs: Positional[Path] = Path("results/table3"),
    trained_on: str = "mini-imagenet",
    tested_on: Sequence[str] = TESTED,
    threads: int = 1,
    page: bool = False,
) -> int:
    """Test what has no row yet, and write the page; the exit code is that of a test that fails, or 0.

    Args:
        runs: folder of the runs.
        trained_on: the dataset of the runs to test.
        tested_on: the datasets to test them on.
        threads: of PyTorch.
        page: write the page from the rows, and end.
    """
    if not runs.is_dir():
        raise UserError(f"Expected a folder of runs, got {runs}; check the path")
    keep_freed_memory()
    torch.set_num_threads(threads)
    out = runs.parent / "cross-domain"
    for run, run_id in [] if page else trained_runs(runs, trained_on):
        for dataset in tested_on:
            if code := test_elsewhere(run, run_id, dataset, out):
                return code
    write_text(out / "README.md", page_text(runs.parent))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main), REPEAT))

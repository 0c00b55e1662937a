"""Kernel modulation against real peers on photographs: `python benchmarks/adapters.py --threads 1`.

EfficientNet-Lite0 is adapted to Flowers-102 (96 px, from 64) and Grocery Store (128 px): to 20 classes with 5, 1 and 10
images each, in several draws, then to all images of all classes. It is adapted by kernel modulation, by peft's LoRA and
LoKr, by norms and head, by the head alone, and by training everything. All methods share the loop of `metakm fit`: the
same head to start from, the same steps and views, batch norm's statistics held. Each method's rates and epochs are the
best of the same four candidates on a draw of its own. With all images they are the better of two, on official
validation images: those chosen for 10 images each, and the method's own rates for 10 epochs.

A row is added to OUT/rows.csv for each cell (dataset, images per class, draw, method, candidate), all methods of a draw
before the next draw. The same command continues where the last one stopped; `--seconds` ends it before that. `--status`
says what is done and left, `--page` writes OUT/README.md and OUT/frontier.png from the rows.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from adapter_cells import CANDIDATES, Cell, Result, Task, as_hex, make_task, run_cell
from adapter_data import Images, load_images
from adapter_methods import CONTESTANTS
from measuring import RESULTS, describe

from metakm.cli.progress import duration
from metakm.io.csv_file import csv_text, read_csv
from metakm.io.files import write_text
from metakm.io.lock import Lock
from metakm.models.pretrained import Pretrained, load_pretrained
from metakm.photos.methods import faster_layout
from metakm.run.provenance import now

DATASETS = ("flowers", "grocery")
SHOTS = ("5", "1", "10", "all")
KEYS = ("dataset", "shots", "draw", "method", "candidate")
COLUMNS = (
    *KEYS, "accuracy", "accuracy_fp16", "images", "trained", "trained_head", "bytes", "bytes_fp16", "steps",
    "fit_seconds", "image_ms", "cell_seconds", "when", "made_by", "right",
)  # fmt: skip
USUAL = 2
"""The candidate of a method's own rates for 10 epochs."""
Row = Mapping[str, str]


@dataclass
class Bench:
    """What is compared, and the rows so far.

    Args:
        out: folder of `rows.csv`.
        images: reads a dataset.
        base: loads the network.
    """

    out: Path
    images: Callable[[str], Images]
    base: Callable[[], Pretrained]
    draws: int = 5
    ways: int = 20
    datasets: Sequence[str] = DATASETS
    shots: Sequence[str] = SHOTS

    def __post_init__(self) -> None:
        path = self.out / "rows.csv"
        self.rows: list[Row] = list(read_csv(path)) if path.is_file() else []

    def cells(self) -> list[Cell]:
        """All, in the order in which they run; those of a draw that is reported have candidate -1 until it is known."""
        found = []
        for shots in self.shots:
            tuning = [("tune", name) for name in self.datasets]
            reported = [(str(d), name) for d in range(1 if shots == "all" else self.draws) for name in self.datasets]
            for number, name in [*tuning, *reported]:
                for method in CONTESTANTS:
                    candidates = self.compared(name, shots, method) if number == "tune" else [-1]
                    found += [Cell(name, shots, number, method, c) for c in candidates]
        return found

    def compared(self, dataset: str, shots: str, method: str) -> Sequence[int]:
        """The candidates of the draw `tune`; with all images, that of fewer and the usual one, if they differ."""
        if shots != "all":
            return range(1 if method == "head" else len(CANDIDATES))
        most = max((each for each in self.shots if each != "all"), key=int)
        accuracies = self.tuned(dataset, most, method)
        few = best(accuracies)
        complete = len(accuracies) == len(self.compared(dataset, most, method))
        return [few, USUAL] if complete and few != USUAL and method != "head" else []

    def left(self) -> list[Cell]:
        """Those without a row."""
        done = {tuple(row[key] for key in KEYS) for row in self.rows}
        reported = {key[:4] for key in done if key[2] != "tune"}
        return [
            cell
            for cell in self.cells()
            if (tuple(map(str, cell)) not in done if cell.number == "tune" else cell[:4] not in reported)
        ]

    def chosen(self, cell: Cell) -> int:
        """The best candidate of a method; with all images, where there was nothing to compare, the usual one."""
        if cell.shots == "all" and not self.compared(*cell[:2], cell.method):
            return 0 if cell.method == "head" else USUAL
        return best(self.tuned(*cell[:2], cell.method))

    def tuned(self, dataset: str, shots: str, method: str) -> dict[int, float]:
        """Accuracies by candidate in the draw `tune`."""
        draw = (dataset, shots, "tune", method)
        return {
            int(row["candidate"]): float(row["accuracy"])
            for row in self.rows
            if (row["dataset"], row["shots"], row["draw"], row["method"]) == draw
        }

    def run(self, seconds: float | None = None) -> Iterator[Row]:
        """Run what is left, a row at a time; no cell begins after `seconds`."""
        began, task, made = time.monotonic(), None, None
        base = self.base()
        faster_layout(base.network)
        while (cell := next(iter(self.left()), None)) is not None:  # what is left may depend on what was chosen
            if seconds is not None and time.monotonic() - began >= seconds:
                return
            if made != cell[:3]:
                task, made = make_task(base, self.images(cell.dataset), cell.shots, cell.number, self.ways), cell[:3]
            assert task is not None, "made for the first cell"
            yield self._row(cell, task)

    def _row(self, cell: Cell, task: Task) -> Row:
        candidate = cell.candidate if cell.number == "tune" else self.chosen(cell)
        began = time.process_time()
        result = run_cell(task, cell.method, CANDIDATES[candidate])
        row = as_row(cell._replace(candidate=candidate), result, time.process_time() - began)
        self.rows.append(row)
        write_text(self.out / "rows.csv", csv_text(self.rows, COLUMNS))
        return row

    def status(self) -> str:
        """What is done and left, and for how long."""
        left = self.left()
        lines = []
        for shots in self.shots:
            plural, per = "s" if shots != "1" else " ", " per class" if shots != "all" else " " * 10
            images = f"{shots:>3} image{plural}{per}"
            for name in self.datasets:
                own = [cell for cell in self.cells() if cell[:2] == (name, shots)]
                rest = [cell for cell in left if cell[:2] == (name, shots)]
                estimate = sum(self.seconds_of(cell) for cell in rest)
                done = f"{len(own) - len(rest)} of {len(own)} cells"
                lines.append(f"{name:8} {images}: {done:16} {duration(estimate):>8} left")
        total = sum(self.seconds_of(cell) for cell in left)
        return "\n".join([*lines, f"in all {len(left)} cells, {duration(total)} of one processor left"])

    def seconds_of(self, cell: Cell) -> float:
        """Expected time of a cell, from those that are done, scaled by the images that it passes."""
        known = [
            float(row["cell_seconds"]) / work(row["dataset"], row["shots"], row["draw"], int(row["candidate"]))
            for row in self.rows
            if row["method"] == cell.method
        ] or [0.02]
        return statistics.median(known) * work(cell.dataset, cell.shots, cell.number, cell.candidate)


def best(accuracies: Mapping[int, float]) -> int:
    """The best candidate; the first, which is the gentler, of equals. -1 if there is none."""
    return min(accuracies, key=lambda candidate: (-accuracies[candidate], candidate), default=-1)


def work(dataset: str, shots: str, number: str, candidate: int) -> float:
    """Training passes of an image of Flowers-102 that a cell is worth; a classified image counts a third."""
    tune = number == "tune"
    classes, of_test, open_images = (102, 60, 2040) if dataset == "flowers" else (81, 31, 2936)
    support = (10 * classes if tune else open_images) if shots == "all" else 20 * int(shots)
    queries = (300 if tune else 20 * of_test) if shots != "all" else (open_images / 5 if tune else classes * of_test)
    epochs = CANDIDATES[candidate].epochs if candidate >= 0 else max(each.epochs for each in CANDIDATES)
    passes = 1 if tune else 2
    return (support * epochs + passes * queries / 3) * (1.0 if dataset == "flowers" else (128 / 96) ** 2)


def as_row(cell: Cell, result: Result, seconds: float) -> Row:
    """A line of rows.csv; which queries are right is left out for the draws that are not reported."""
    count = len(result.right)
    values = (
        *cell, f"{result.right.double().mean():.6f}", f"{result.right_half.double().mean():.6f}", count, result.trained,
        result.trained_head, result.bytes_full, result.bytes_half, result.steps, f"{result.fit_seconds:.2f}",
        f"{result.image_ms:.3f}", f"{seconds:.2f}", now(), describe(),
        "" if cell.number == "tune" else as_hex(result.right),
    )  # fmt: skip
    return dict(zip(COLUMNS, map(str, values), strict=True))


def main(
    out: Path = RESULTS.parent / "adapters",
    cache: Path | None = None,
    threads: int = 1,
    seconds: float | None = None,
    draws: int = 5,
    datasets: tuple[str, ...] = DATASETS,
    status: bool = False,
    page: bool = False,
) -> None:
    """Run what is left.

    Args:
        out: folder of the rows and the page.
        cache: folder of the decoded images; OUT/cache by default.
        threads: of PyTorch.
        seconds: begin no cell after this time.
        draws: how many to report for each number of images per class.
        datasets: `flowers`, `grocery`, or both.
        status: say what is done and left, and end.
        page: write the page from the rows, and end.
    """
    data, decoded = Path(os.environ.get("METAKM_DATA", "data")), cache or out / "cache"
    held: dict[str, Images] = {}

    def images(name: str) -> Images:
        if name not in held:
            held[name] = load_images(name, data, decoded)
        return held[name]

    bench = Bench(out, images, lambda: load_pretrained("efficientnet-lite0"), draws, datasets=datasets)
    if status:
        print(bench.status())
        return
    if page:
        from adapter_page import write_page

        print(write_page(out, bench.rows, bench.status() if bench.left() else ""))
        return
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    lock = Lock(out / ".lock")
    lock.acquire()
    try:
        for row in bench.run(seconds):
            print(*(row[key] for key in (*KEYS, "accuracy", "cell_seconds")), flush=True)
    finally:
        lock.release()


if __name__ == "__main__":
    tyro.cli(main)

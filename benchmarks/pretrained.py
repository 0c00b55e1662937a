"""A meta-trained base against the plain one on classes never trained on: `python benchmarks/pretrained.py`.

Tasks of 5 and more ways with 1, 5 and 10 photos of each class, at 96 and 128 px, are classified from features of the
frozen base in closed form (class means, ridge regression) and by logistic regression (probe). On the first of the same
tasks, 1 and 5 photos, 96 px, `metakm fit` adapts the plain base's norms, or adds low-rank matrices to its kernels.

A row is added to OUT/rows.csv for each cell (base, source, size, ways, shots, method). The same command goes on where
the last one stopped; `--seconds` ends it before that, `--status` says what is left, `--page` writes OUT/README.md.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import tyro
from measuring import RESULTS, describe
from pretrained_data import QUERIES, SOURCES, Task, cached_features, check_names, draw_tasks, load_source, parse_base
from torch import Tensor

import metakm
from metakm.cli.exit_code import REPEAT, exit_code
from metakm.data import FewShotDataset
from metakm.errors import UserError
from metakm.io.csv_file import csv_text, read_csv
from metakm.io.files import write_text
from metakm.io.lock import Lock
from metakm.learning.statistics import interval_over_tasks
from metakm.models.pretrained import FEWSHOT, LITE0, Pretrained
from metakm.modulation.base_pack import load_base
from metakm.modulation.partition import base_fingerprint
from metakm.photos.head import Solver, solve_centroid, solve_head, solve_ridge
from metakm.photos.methods import faster_layout
from metakm.run.provenance import now

SOLVERS: Mapping[str, Solver] = {"centroid": solve_centroid, "ridge": solve_ridge, "probe": solve_head}
ADAPTED = ("norm", "lora")
"""Methods of `metakm fit`; each adapts the head, too."""
TESTED = ("flowers", "grocery", "cifar10")
"""What the base that comes with metakm was not trained on."""
KEYS = ("base", "source", "side", "ways", "shots", "method")
COLUMNS = (
    *KEYS, "tasks", "accuracy", "ci95", "solve_seconds", "fit_seconds", "episodes_hash", "fingerprint", "seen", "when",
    "made_by", "right",
)  # fmt: skip
"""`solve_seconds`: CPU time of a task in closed form, from cached features; `fit_seconds`: from its photos."""
Row = Mapping[str, str]


class Cell(NamedTuple):
    """What is run."""

    base: str
    source: str
    side: int
    ways: int
    shots: int
    method: str


@dataclass
class Bench:
    """What is compared, and the rows so far.

    Args:
        out: folder of `rows.csv` and of cached features.
        bases: names of bases by what the table calls them; the first one is plain, and is adapted too.
        sources: of each base, by the same names.
    """

    out: Path
    bases: Mapping[str, str]
    sources: Mapping[str, Sequence[str]]
    sides: Sequence[int] = (96, 128)
    shots: Sequence[int] = (1, 5, 10, 25)
    methods: Sequence[str] = (*SOLVERS, *ADAPTED)
    tasks: int = 600
    adapted_tasks: int = 30
    load: Callable[[str, int], FewShotDataset] = load_source

    def __post_init__(self) -> None:
        path = self.out / "rows.csv"
        self.rows: list[Row] = list(read_csv(path)) if path.is_file() else []
        self.dataset = cache(self.load)
        self.base = cache(self._base)
        self.plain = next(iter(self.bases))

    def cells(self) -> Iterator[Cell]:
        """All, what is fast first."""
        for method in self.methods:
            for side in self.sides:
                for source, base in itertools.product(SOURCES, self.bases):
                    if source in self.sources[base]:
                        for ways in sorted({5, SOURCES[source].ways}):
                            yield from self._cells_of(base, source, side, ways, method)

    def _cells_of(self, base: str, source: str, side: int, ways: int, method: str) -> Iterator[Cell]:
        """Adaptation is of the plain base, at the smaller size, with 1 and 5 photos."""
        for shots in self.shots:
            if method in SOLVERS or (base == self.plain and side == min(self.sides) and shots <= 5):
                yield Cell(base, source, side, ways, shots, method)

    def left(self) -> list[Cell]:
        """Those without a row."""
        done = {tuple(row[key] for key in KEYS) for row in self.rows}
        return [cell for cell in self.cells() if tuple(map(str, cell)) not in done]

    def run(self, seconds: float | None = None) -> Iterator[Row]:
        """Run what is left, a row at a time; no cell begins after `seconds`."""
        began = time.monotonic()
        for cell in self.left():
            if seconds is not None and time.monotonic() - began >= seconds:
                return
            row = self._row(cell)
            self.rows.append(row)
            write_text(self.out / "rows.csv", csv_text(self.rows, COLUMNS))
            yield row

    def _row(self, cell: Cell) -> Row:
        dataset = self.dataset(cell.source, cell.side)
        count = self.tasks if cell.method in SOLVERS else self.adapted_tasks
        tasks, drawn = draw_tasks(dataset, cell.ways, cell.shots, count)
        base, digest = self.base(cell.base)
        others = {row["fingerprint"] for row in self.rows if row["base"] == cell.base} - {digest[:16]}
        if others:
            raise UserError(
                f"Expected the base {cell.base!r} of the rows in {self.out}, with fingerprint {others.pop()}, got one "
                f"with {digest[:16]}; give it another name in --bases, or use another --out"
            )
        began = time.process_time()
        if cell.method in SOLVERS:
            path = self.out / "cache" / f"{cell.base}-{cell.source}-{cell.side}-{digest[:12]}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            bank = cached_features(base, dataset, path)
            began = time.process_time()
            right = [self._solved(SOLVERS[cell.method], bank, task, cell) for task in tasks]
        else:
            right = [self._adapted(dataset, task, cell) for task in tasks]
        seconds = f"{(time.process_time() - began) / len(tasks):.4f}"
        both = (seconds, "") if cell.method in SOLVERS else ("", seconds)
        shares = np.array(right) / (cell.ways * QUERIES)
        values = (
            *cell, len(tasks), f"{shares.mean():.6f}", f"{interval_over_tasks(shares):.6f}", *both, drawn,
            digest[:16], SOURCES[cell.source].seen, now(), describe(), " ".join(map(str, right)),
        )  # fmt: skip
        return dict(zip(COLUMNS, map(str, values), strict=True))

    def _solved(self, solve: Solver, bank: Tensor, task: Task, cell: Cell) -> int:
        """Queries that are right."""
        support, labels = bank[task.support], torch.arange(cell.ways).repeat_interleave(cell.shots)
        weight, bias = solve(support, labels, torch.ones(len(support)), cell.ways)
        return self._right(bank[task.queries] @ weight.T + bias, cell.ways)

    def _adapted(self, dataset: FewShotDataset, task: Task, cell: Cell) -> int:
        """As `metakm fit` does, without photos held out, which a task of few has none of to spare."""
        photos = {
            f"{label:02d}": list(np.array(dataset.images[rows]).transpose(0, 2, 3, 1))
            for label, rows in enumerate(task.support.reshape(cell.ways, -1))
        }
        fitted = metakm.fit(
            photos, base=self.bases[cell.base], method=cell.method, size=cell.side, validation="none", device="cpu"
        )
        return self._right(torch.from_numpy(fitted.probabilities(np.array(dataset.images[task.queries]))), cell.ways)

    @staticmethod
    def _right(logits: Tensor, ways: int) -> int:
        return int((logits.argmax(dim=1) == torch.arange(ways).repeat_interleave(QUERIES)).sum())

    def _base(self, name: str) -> tuple[Pretrained, str]:
        """The base, and the fingerprint of all of it."""
        base = load_base(self.bases[name])
        faster_layout(base.network)
        return base, base_fingerprint(base.network, False, None, "base")

    def status(self) -> str:
        """How much is done."""
        every, left = len(list(self.cells())), self.left()
        by_method = {method: sum(cell.method == method for cell in left) for method in self.methods}
        rest = ", ".join(f"{method} {count}" for method, count in by_method.items() if count)
        return f"{every - len(left)} of {every} cells are done" + (f"; left: {rest}" if rest else "")


def scores(row: Row) -> npt.NDArray[np.float64]:
    """Share of right queries of each task."""
    return np.array([int(count) for count in row["right"].split()]) / (int(row["ways"]) * QUERIES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 a file not written, 2 the user's mistake, 130 interrupted."""
    return exit_code(lambda: tyro.cli(_main, args=arguments), REPEAT)


def _main(
    out: Path = RESULTS.parent / "pretrained",
    bases: tuple[str, ...] = (),
    methods: tuple[str, ...] = (*SOLVERS, *ADAPTED),
    tested: tuple[str, ...] = TESTED,
    sides: tuple[int, ...] = (96, 128),
    tasks: int = 600,
    threads: int = 1,
    seconds: float | None = None,
    status: bool = False,
    page: bool = False,
) -> int:
    """Run what is left.

    Args:
        out: folder of the rows, the page and cached features.
        bases: further ones as NAME=BASE=SOURCE,SOURCE, such as flowers-only=results/a/seed0=all-grocery,cifar10.
        methods: some of centroid, ridge, probe, norm and lora.
        tested: sources of the plain base and of the one that comes with metakm.
        sides: of the images in pixels.
        tasks: of each cell in closed form.
        threads: of PyTorch.
        seconds: begin no cell after this time.
        status: say what is done and left, and end.
        page: write the page from the rows, and end.
    """
    check_names("--methods", methods, (*SOLVERS, *ADAPTED))
    check_names("--tested", tested, SOURCES)
    named, sources = {LITE0: LITE0, FEWSHOT: FEWSHOT}, {LITE0: [*tested], FEWSHOT: [*tested]}
    for given in bases:
        name, named[name], sources[name] = parse_base(given)
        sources[LITE0] += [each for each in sources[name] if each not in sources[LITE0]]
    bench = Bench(out, named, sources, sides=sides, methods=methods, tasks=tasks)
    if status:
        print(bench.status())
        return 0
    if page:
        from pretrained_page import write_page

        print(write_page(out, bench.rows))
        return 0
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    lock = Lock(out / ".lock")
    lock.acquire()
    try:
        for row in bench.run(seconds):
            print(*(row[key] for key in (*KEYS, "accuracy", "ci95", "solve_seconds", "fit_seconds")), flush=True)
    finally:
        lock.release()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The page and the picture of adapters.py, from its rows."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from adapter_cells import CANDIDATES, from_hex
from adapter_methods import CONTESTANTS

from metakm.io.figure import new_figure
from metakm.io.files import atomic_write, write_text
from metakm.io.markdown import markdown_table
from metakm.learning.statistics import interval_over_seeds, interval_over_tasks

Row = Mapping[str, str]
TITLES = {"flowers": "Flowers-102, 96 px", "grocery": "Grocery Store, 128 px"}
ORDER = ("1", "5", "10", "all")
_COMPARED = (("both", "norm"), ("channel", "norm"), ("low-rank", "norm"), ("km", "lora1"), ("km", "lokr4"))
_HEADER = (
    "method", "accuracy, %", "vs norm + head", "from an fp16 pack, %", "parameters", "pack, kB", "fp16, kB", "fit, s",
    "ms per image", "rate factor, epochs",
)  # fmt: skip


class Estimate(NamedTuple):
    """A mean in percent, with the half-width of its 95 % interval, if there is one."""

    mean: float
    width: float | None

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + ("" if self.width is None else f" ± {self.width:.1f}")


class Block:
    """The reported rows of a dataset and a number of images per class, by method and draw.

    Draws differ more than methods, so only those count that all its methods have, once there are any.
    """

    def __init__(self, rows: Sequence[Row], dataset: str, shots: str) -> None:
        self.dataset, self.shots = dataset, shots
        self.rows: dict[str, dict[str, Row]] = {}
        for row in rows:
            if (row["dataset"], row["shots"]) == (dataset, shots) and row["draw"] != "tune":
                self.rows.setdefault(row["method"], {})[row["draw"]] = row
        if self.rows and (common := set.intersection(*(set(draws) for draws in self.rows.values()))):
            self.rows = {m: {d: row for d, row in draws.items() if d in common} for m, draws in self.rows.items()}

    @property
    def title(self) -> str:
        """As a heading."""
        images = "all classes, all images" if self.shots == "all" else f"20 classes, {self.shots} image"
        return f"{TITLES.get(self.dataset, self.dataset)}: {images}{'s' if self.shots in ('5', '10') else ''}"

    def accuracy(self, method: str, column: str = "accuracy") -> Estimate:
        """Over the draws; where there is one of all images, over these."""
        rows = self.rows[method]
        if self.shots == "all":
            mean = float(next(iter(rows.values()))[column])
            return _estimate([mean], self._right(method) if column == "accuracy" else None)
        return _estimate([float(row[column]) for row in rows.values()], None)

    def difference(self, method: str, other: str) -> Estimate | None:
        """In pairs: of the draws that both have, or of the same images."""
        both = sorted(self.rows.get(method, {}).keys() & self.rows.get(other, {}).keys())
        if not both:
            return None
        apart = [float(self.rows[method][d]["accuracy"]) - float(self.rows[other][d]["accuracy"]) for d in both]
        return _estimate(apart, self._right(method) - self._right(other) if self.shots == "all" else None)

    def mean(self, method: str, column: str) -> float:
        """Of a column, over the draws."""
        return statistics.mean(float(row[column]) for row in self.rows[method].values())

    def beside_head(self, method: str) -> float:
        """Bytes of a pack in half precision, without the head's values."""
        return self.mean(method, "bytes_fp16") - 2 * self.mean(method, "trained_head")

    def frontier(self) -> list[str]:
        """Methods that no other beats with as few bytes, from small to large packs."""
        found: list[str] = []
        for method in sorted(self.rows, key=lambda m: (self.beside_head(m), -self.accuracy(m, "accuracy_fp16").mean)):
            best = self.accuracy(found[-1], "accuracy_fp16").mean if found else -1.0
            if self.accuracy(method, "accuracy_fp16").mean > best:
                found.append(method)
        return found

    def table(self) -> str:
        """In Markdown."""
        return markdown_table(_HEADER, [self._cells(method) for method in CONTESTANTS if method in self.rows])

    def _cells(self, method: str) -> list[str]:
        difference = self.difference(method, "norm") if method != "norm" else None
        rates = CANDIDATES[int(next(iter(self.rows[method].values()))["candidate"])]
        return [
            CONTESTANTS[method].label,
            str(self.accuracy(method)),
            "" if difference is None else signed(difference),
            f"{100 * self.mean(method, 'accuracy_fp16'):.1f}",
            f"{self.mean(method, 'trained'):,.0f}",
            f"{self.mean(method, 'bytes') / 1000:,.0f}",
            f"{self.mean(method, 'bytes_fp16') / 1000:,.0f}",
            f"{self.mean(method, 'fit_seconds'):.1f}",
            f"{self.mean(method, 'image_ms'):.2f}",
            "" if method == "head" else f"{rates.factor:g}, {rates.epochs}",
        ]

    def _right(self, method: str) -> npt.NDArray[np.float64]:
        row = next(iter(self.rows[method].values()))
        return from_hex(row["right"], int(row["images"])).double().numpy()


def _estimate(values: Sequence[float], images: npt.NDArray[np.float64] | None) -> Estimate:
    """Mean of draws with its Student interval, or with that over the images of one."""
    width = interval_over_seeds(np.array(values)) if images is None else interval_over_tasks(images)
    return Estimate(100 * statistics.mean(values), None if width is None else 100 * width)


def signed(estimate: Estimate) -> str:
    """With its sign, in bold where the interval leaves zero out."""
    text = f"{estimate.mean:+.1f}" + ("" if estimate.width is None else f" ± {estimate.width:.1f}")
    return f"**{text}**" if estimate.width is not None and abs(estimate.mean) > estimate.width else text


def write_page(out: Path, rows: Sequence[Row], status: str) -> Path:
    """Write README.md and frontier.png; return the former's path.

    Args:
        status: what is done and left; empty if nothing is left.
    """
    blocks = [Block(rows, dataset, shots) for shots in ORDER for dataset in TITLES]
    blocks = [block for block in blocks if block.rows]
    parts = [_INTRODUCTION, _progress(rows, status)]
    if blocks:
        draw_frontier(blocks, out / "frontier.png")
        picture = "![accuracy against bytes of the pack](frontier.png)"
        caption = "*Circles: kernel modulation. Squares: the others. Line: the best for its size.*"
        parts += [f"{picture}\n\n{caption}", _comparison(blocks)]
        parts += [f"## {block.title}, {_draws(block)}\n\n{block.table()}" for block in blocks]
    write_text(out / "README.md", "\n\n".join(parts) + "\n")
    return out / "README.md"


def _progress(rows: Sequence[Row], status: str) -> str:
    reported = [row for row in rows if row["draw"] != "tune"]
    lines = [f"{len(rows)} cells are done, {len(reported)} of them reported; the others only choose the rates."]
    made_by = Counter(row["made_by"] for row in rows)
    lines += ["", "```", status, "```"] if status else []
    return "\n".join([*lines, *(["", _made_by(made_by)] if made_by else [])])


def _made_by(cells: Mapping[str, int]) -> str:
    """What all rows' machines have in common, and the commits with their cells, from `measuring.describe`'s lines."""
    lines = [line.split(", ") for line in cells]
    common = [part for part in lines[0][:-1] if all(part in line for line in lines)]
    commits: Counter[str] = Counter()
    for line, (*_, commit) in zip(cells, lines, strict=True):
        commits[commit] += cells[line]
    counted = ", ".join(f"{commit} ({count})" for commit, count in commits.most_common())
    return f"Made by {', '.join([*common, ''])}at these commits (cells): {counted}."


def _draws(block: Block) -> str:
    counts = sorted({len(rows) for rows in block.rows.values()})
    missing = [CONTESTANTS[m].label for m in CONTESTANTS if m not in block.rows]
    draws = (
        f"{counts[0]} draw{'s' if counts[0] > 1 else ''}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} draws"
    )
    return draws + (f" (not yet: {', '.join(missing)})" if missing else "")


def _comparison(blocks: Sequence[Block]) -> str:
    """Points between two methods, and who holds the frontier."""
    heads = [f"{CONTESTANTS[a].label} vs {CONTESTANTS[b].label}" for a, b in _COMPARED]
    lines = []
    for block in blocks:
        found = [block.difference(a, b) for a, b in _COMPARED]
        cells = ["" if each is None else signed(each) for each in found]
        frontier = ", ".join(CONTESTANTS[method].label for method in block.frontier())
        lines.append((block.title, *cells, frontier))
    table = markdown_table(("", *heads, "Pareto frontier, smallest pack first"), lines)
    return f"## KM and its peers, differences in points\n\n{table}"


def draw_frontier(blocks: Sequence[Block], path: Path) -> None:
    """A panel for each block: accuracy from half packs against their bytes without the head's values."""
    columns = min(2, len(blocks))
    rows = -(-len(blocks) // columns)
    figure = new_figure(figsize=(6.5 * columns, 4.2 * rows), layout="constrained")
    for number, block in enumerate(blocks):
        axes = figure.add_subplot(rows, columns, number + 1)
        points = {m: (block.beside_head(m) / 1000, block.accuracy(m, "accuracy_fp16")) for m in block.rows}
        for method, (size, accuracy) in points.items():
            ours = CONTESTANTS[method].kind == "km"
            axes.plot(size, accuracy.mean, "o" if ours else "s", color="tab:red" if ours else "tab:gray")
            axes.annotate(method, (size, accuracy.mean), xytext=(4, 4), textcoords="offset points", fontsize=8)
        line = [points[method] for method in block.frontier()]
        axes.step([size for size, _ in line], [a.mean for _, a in line], where="post", color="tab:blue", linewidth=0.8)
        axes.set(xscale="log", title=f"{block.title}, {_draws(block).partition(' (')[0]}")
        axes.set(xlabel="pack in half precision without the head's values, kB", ylabel="accuracy, %")
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)


_INTRODUCTION = """# Adapters on EfficientNet-Lite0

Rows and this page are made by

    METAKM_DATA=FOLDER python benchmarks/adapters.py --out results/adapters --threads 1
    python benchmarks/adapters.py --out results/adapters --page

and the first command continues where it was stopped. Flowers-102 is stored at 64 px and enlarged. Support images are
official training and validation images; the queries are all official test images of the same classes. An accuracy is
the mean over draws with a Student-t 95 % interval; so is the difference from norm + head, in pairs, bold where its
interval excludes zero. With all images there is one run, and intervals are over test images: they do not cover other
seeds. No interval covers the choice of learning rates; and of every 20 differences, one is expected to exclude zero by
chance.

All methods run in the loop of `metakm fit`, on one network, from one head for the frozen features, with the same views
of the same images in the same order, and batch norm's statistics held. The head alone is fitted more closely than that
start; its time includes both fits. Each method takes the best of four candidates (learning-rate factor x epochs: 0.3 x
4, 1 x 4, 1 x 10, 3 x 10), chosen for each dataset and number of images on one extra draw of training and validation
images, which is not reported. With all images, two candidates are compared instead of four, which would take twice as
long: 1 x 10 and the choice for 10 images, after training on 10 training images per class, by their accuracy on the
validation images. A factor of 1 means the learning rates of `metakm fit` (AdamW): head 1e-3, norms 2e-3 (1e-3 in full
fine-tuning), kernel modulators 2e-4 alone and 5e-5 with norms, low-rank additions and all of peft's 3e-4, everything
1e-4. So a method that trains two kinds of tensors has a rate for each.

The choice rests on a few hundred images of one draw, so nearly equal methods may take different candidates: with 5
images of Flowers-102, KM both took 4 epochs, by a margin of one image, and is 2 points below the same with neighbouring
channels, which took 10. Photographs of one product are near-duplicates within Grocery Store's official training and
validation images, but not between these and the test images; so there the draw favours memorising, such as 3 times the
rates for full fine-tuning with one image.

peft 0.21 refuses LoRA on depthwise convolutions, so LoRA adapts all others. Its LoKr fails on timm's convolutions with
padding of their own (the strided ones), so LoKr adapts all others, also depthwise ones. Norm + head is KM's
implicit modulation, and corresponds to BitFit in a network whose biases are in its norms.

`pack` is the file's size in float32, `fp16` in float16, both with the head and with the names stored in the file. Times
are CPU times of one thread, on a machine shared with other jobs: the seconds of a fit, the solution of the head
included, and the milliseconds per image in a batch of 32, merged by each method's own library."""

"""Seconds from photos to a classifier: `python benchmarks/fit_seconds.py`.

`metakm fit` on one photo each of 20 kinds of groceries that no base was trained on, at 96 and 160 px, with the base and
the photos in memory: class means and ridge regression on the base that comes with metakm, and norm + head on the plain
one. CPU time of one thread, the median of some fits. Writes OUT/fit-seconds.csv and prints it.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import tyro
from measuring import RESULTS, describe
from pretrained_data import check_names, draw_tasks, load_source

from metakm.cli.exit_code import exit_code
from metakm.io.csv_file import csv_text
from metakm.io.files import write_text
from metakm.models.pretrained import FEWSHOT, LITE0
from metakm.modulation.base_pack import load_base
from metakm.photos.checkpoint import Checkpoint
from metakm.photos.fitting import FitPipeline
from metakm.photos.methods import faster_layout
from metakm.photos.options import FitSettings
from metakm.photos.store import PhotoStore
from metakm.run.provenance import now

BASES = {"centroid": FEWSHOT, "ridge": FEWSHOT, "norm": LITE0}
"""The base of each method."""
COLUMNS = ("base", "method", "photos", "side", "fit_seconds", "repetitions", "when", "made_by")
Photos = Mapping[str, Sequence[npt.NDArray[np.uint8]]]


def one_photo_a_class(source: str, ways: int, side: int) -> Photos:
    """The support photos `[H, W, 3]` of the source's first 1-shot task."""
    dataset = load_source(source, side)
    (task,), _ = draw_tasks(dataset, ways, 1, 1)
    return {
        f"{label:02d}": [np.array(dataset.images[row]).transpose(1, 2, 0)] for label, row in enumerate(task.support)
    }


def seconds_of_fit(method: str, photos: Photos, side: int) -> float:
    """CPU time of one fit, without loading the base."""
    base = load_base(BASES[method])
    faster_layout(base.network)
    base = dataclasses.replace(base, preprocessing=dataclasses.replace(base.preprocessing, size=side))
    settings = FitSettings(base=BASES[method], method=method, size=side, validation="none", device="cpu")
    store = PhotoStore(photos, base.preprocessing)
    began = time.process_time()
    checkpoint = Checkpoint(None, "", resume=False)
    FitPipeline(base, store, settings, checkpoint, prepare=_ignore, advance=_ignore).run()
    return time.process_time() - began


def _ignore(*_: object) -> None:
    """No progress is shown."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 a file not written, 2 the user's mistake, 130 interrupted."""
    return exit_code(lambda: tyro.cli(_main, args=arguments))


def _main(
    out: Path = RESULTS.parent / "pretrained",
    methods: tuple[str, ...] = tuple(BASES),
    ways: int = 20,
    sides: tuple[int, ...] = (96, 160),
    repetitions: int = 3,
) -> int:
    """Measure.

    Args:
        out: folder of fit-seconds.csv.
        methods: some of centroid, ridge and norm.
        ways: classes.
        sides: of the images in pixels.
        repetitions: fits of each method, after one to warm up.
    """
    check_names("--methods", methods, BASES)
    torch.set_num_threads(1)
    rows = []
    for side, method in itertools.product(sides, methods):
        photos = one_photo_a_class("grocery", ways, side)
        found = [seconds_of_fit(method, photos, side) for _ in range(1 + repetitions)]
        median = f"{statistics.median(found[1:]):.3f}"
        values = (BASES[method], method, ways, side, median, repetitions, now(), describe())
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "fit-seconds.csv", csv_text(rows, COLUMNS))
    print(csv_text(rows, COLUMNS), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())

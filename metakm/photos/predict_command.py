"""`python -m metakm predict`: classify photos with a pack of metakm fit."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from metakm.cli.exit_code import exit_code
from metakm.cli.flags import read_options
from metakm.cli.progress import log_line
from metakm.errors import UserError
from metakm.fields import require
from metakm.photos.classifier import PhotoClassifier, load_classifier
from metakm.photos.listing import NONE_OF_THESE, list_images
from metakm.photos.reading import without_warnings
from metakm.photos.store import BATCH, photo_pixels

PROGRAM = "python -m metakm predict"


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Classify photos with a pack that metakm fit wrote.

    Each photo gets a line: file, class and probability.

    After "(none of these)" the most likely class follows.
    """

    pack: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PACK")]
    """The pack."""
    photos: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="PHOTO [PHOTO ...]", help_behavior_hint="(required)"),
    ]
    """Image files, or folders with images."""
    json: bool = False
    """Print a JSON list instead, with the probability of each class."""
    csv: bool = False
    """Print CSV instead, with one column per class."""
    threshold: float | None = None
    """Smallest probability at which a class is named, instead of the pack's. 0 always names one."""
    base: str | None = None
    """The pretrained network, in place of the one named in the pack. Required if that is a Python file, or a run or pack that is not in the current folder."""  # noqa: E501
    weights: Path | None = None
    """File with weights of the base, if the pack was fitted with one."""
    device: str = "cpu"
    """auto (a GPU, if there is one), cpu or cuda."""

    def __post_init__(self) -> None:
        require(not (self.json and self.csv), "csv", "left out with --json", "both")
        require(
            self.threshold is None or 0 <= self.threshold <= 1, "threshold", "a probability from 0 to 1", self.threshold
        )


@dataclass(frozen=True)
class Answer:
    """What is known of one photo; the class is None where the file cannot be read."""

    file: Path
    name: str | None
    probabilities: dict[str, float]
    error: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 the user's mistake, such as a photo that cannot be read; the others are still classified."""
    return exit_code(lambda: _predict(read_options(PredictOptions, PROGRAM, arguments)))


def _predict(options: PredictOptions) -> int:
    paths = list_images(options.photos)
    classifier = load_classifier(options.pack, options.base, options.weights, options.device)
    classes, write = [str(name) for name in classifier.classes_], csv.writer(sys.stdout, lineterminator="\n").writerow
    widths = max(len(str(path)) for path in paths), max(map(len, [*classes, NONE_OF_THESE]))
    records = []
    unread = 0
    if options.csv:
        write(["file", "class", "probability", *(f"probability of {name}" for name in classes)])
    for first in range(0, len(paths), BATCH):
        for answer in _answers(classifier, paths[first : first + BATCH], options.threshold):
            if answer.error is not None:
                unread += 1
                log_line(f"skipped {answer.file}: {answer.error}")
            if options.json:
                records.append(_record(answer))
            elif options.csv:
                write(_row(answer, classes))
            elif answer.name is not None:
                print(_line(answer, *widths))  # noqa: T201
        sys.stdout.flush()
    if options.json:
        print(json.dumps(records, indent=1, ensure_ascii=False))  # noqa: T201
    return 2 if unread else 0


def _answers(classifier: PhotoClassifier, paths: Sequence[Path], threshold: float | None) -> Iterator[Answer]:
    read: dict[Path, Any] = {}
    for path in paths:
        try:
            with without_warnings():
                read[path] = photo_pixels(path, classifier.preprocessing)
        except UserError as error:
            read[path] = error
    good = [path for path in paths if not isinstance(read[path], UserError)]
    found = classifier.probabilities(np.stack([read[path] for path in good])) if good else np.empty((0, 0))
    names = dict(zip(good, classifier.names(found, threshold).tolist() if good else [], strict=True))
    rows = dict(zip(good, found.tolist(), strict=True))
    for path in paths:
        if path in names:
            by_class = dict(zip(map(str, classifier.classes_), rows[path], strict=True))
            yield Answer(path, names[path], by_class)
        else:
            yield Answer(path, None, {}, str(read[path]))


def _line(answer: Answer, file_width: int, name_width: int) -> str:
    likely, probability = max(answer.probabilities.items(), key=lambda item: item[1])
    line = f"{answer.file!s:<{file_width}}  {answer.name:<{name_width}}  {probability:.3f}"
    return f"{line} {likely}" if answer.name == NONE_OF_THESE else line


def _row(answer: Answer, classes: Sequence[str]) -> list[str]:
    values = [f"{answer.probabilities[name]:.6f}" if answer.probabilities else "" for name in classes]
    return [str(answer.file), answer.name or "", max(values, key=lambda v: float(v or 0)), *values]


def _record(answer: Answer) -> dict[str, Any]:
    known = {"file": str(answer.file), "class": answer.name}
    if answer.error is not None:
        return {**known, "error": answer.error}
    return {**known, "probability": max(answer.probabilities.values()), "probabilities": answer.probabilities}


if __name__ == "__main__":
    sys.exit(main())

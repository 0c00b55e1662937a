"""`python -m metakm fit`: turn a folder of photos into a classifier."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from metakm.cli.exit_code import RESUME, exit_code
from metakm.cli.flags import read_options
from metakm.cli.progress import Progress, duration, log_line
from metakm.cli.signals import StopRequest
from metakm.fields import require, require_file
from metakm.io.files import write_text
from metakm.learning.malloc import keep_freed_memory
from metakm.photos.api import fit_listing
from metakm.photos.classifier import PhotoClassifier
from metakm.photos.fitting import FitPipeline, FitReport
from metakm.photos.listing import NONE_OF_THESE, list_folder
from metakm.photos.methods import CLOSED_FORM
from metakm.photos.options import FitSettings
from metakm.photos.page import render_page
from metakm.photos.training import Trainer

PROGRAM = "python -m metakm fit"


@dataclass(frozen=True, kw_only=True)
class FitOptions(FitSettings):
    """Adapt a pretrained network to the classes of a folder of photos.

    The folder has one subfolder per class, with one to thousands of photos each.
    """

    photos: tyro.conf.Positional[Path]
    """Folder with one subfolder of photos per class."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("classifier.safetensors")
    """The pack, replaced if it is there."""
    report: bool = True
    """Write an HTML page next to the pack, with the same name: curve, confusion matrix, wrongly classified photos."""
    resume: bool = False
    """Continue a fit that was stopped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.out.suffix == ".safetensors", "out", "a .safetensors file", self.out)
        require_file(self.out, "out")
        page = self.out.with_suffix(".html")
        require(not (self.report and page.is_dir()), "out", f"other than {self.out}", f"the folder {page} beside it")

    def settings(self) -> FitSettings:
        """Those that are not the command's alone."""
        names = [field.name for field in dataclasses.fields(FitSettings)]
        given = {name: getattr(self, name) for name in names}
        return FitSettings(**{**given, "task": self.out.stem if self.task is None else self.task})


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 a file that cannot be written, 2 the user's mistake, 130 stopped."""
    return exit_code(lambda: _fit(read_options(FitOptions, PROGRAM, arguments)), RESUME)


def _fit(options: FitOptions) -> int:
    keep_freed_memory()
    listing = list_folder(options.photos)
    checkpoint = options.out.with_name(f".{options.out.name}.checkpoint")
    with StopRequest() as stop, closing(_Steps(stop)) as steps:
        classifier = fit_listing(
            listing, options.settings(), checkpoint=checkpoint, resume=options.resume, prepare=steps.prepare,
            begin=steps.begin, advance=steps.advance,
        )  # fmt: skip
    classifier.save(options.out)
    report = classifier.report_
    assert report is not None, "it was fitted just now"
    page = options.out.with_suffix(".html")
    if options.report:
        write_text(page, render_page(options.photos.name, classifier, report))
    checkpoint.unlink(missing_ok=True)
    print("\n".join(_summary(options, classifier, report, page)))  # noqa: T201
    return 0


def _adapted_on_top(method: str, report: FitReport) -> str:
    """Whether more than the classifier of a meta-trained network was made, and why."""
    if report.held_out is None:
        return "No photos were held out, so the classifier is class means and the network was left as it was."
    if method in CLOSED_FORM or report.held_out.evaluation == 0:
        return "Adapting the network to these photos did not help on photos held out, so it was left as it was."
    return "Adapting the network to these photos helped on photos held out, by their log-likelihood."


class _Steps:
    """Progress of a fit, one bar after the other; ends it where a stop is requested."""

    def __init__(self, stop: StopRequest) -> None:
        self.stop = stop
        self.progress: Progress | None = None
        self.steps = 1

    def close(self) -> None:
        """Remove the bar."""
        if self.progress is not None:
            self.progress.close()

    def prepare(self, what: str, done: int, total: int) -> None:
        """After a photo is read, or a batch of the base's features computed."""
        progress = self._progress_of(what, total, "image")
        progress.advance(done - progress.done)
        self._end_if_requested()

    def begin(self, pipeline: FitPipeline) -> None:
        """Say what is about to be done."""
        self.close()
        for skipped in pipeline.store.skipped:
            log_line(f"skipped {skipped.path}: {skipped.reason}")
        for photo, other in pipeline.store.in_two_classes:
            log_line(f"{photo} is the same photo as {other}, of another class; remove one of them")
        counts = pipeline.store.counts()
        log_line(
            f"{sum(counts)} photos of {len(counts)} classes ({min(counts)} to {max(counts)} each), "
            f"{pipeline.settings.method} on {pipeline.base.name} at {pipeline.base.preprocessing.size} px"
        )
        if not pipeline.splits:
            log_line(
                "No photos are held out, so the accuracy is unknown, the probabilities use a default temperature, and "
                "predict always names a class."
            )
        self.steps = max(1, pipeline.steps)

    def advance(self, loss: float | None, trainer: Trainer) -> None:
        """After a step, or at the start of a part (without a loss), which may be in its middle."""
        progress = self._progress_of("fit", self.steps, "step")
        if loss is not None or trainer.state.step:
            progress.advance(1 if loss is not None else trainer.state.step, loss=loss)
        self._end_if_requested()

    def _progress_of(self, what: str, total: int, unit: str) -> Progress:
        if self.progress is None or self.progress.description != what:
            self.close()
            self.progress = Progress(what, total, unit=unit)
        return self.progress

    def _end_if_requested(self) -> None:
        if self.stop.requested:
            raise KeyboardInterrupt


def _summary(options: FitOptions, classifier: PhotoClassifier, report: FitReport, page: Path) -> list[str]:
    lines = list(report.comparison)
    method, held_out = classifier.pack.photos["method"], report.held_out
    if held_out is not None:
        lines.append(
            f"{100 * held_out.accuracy:.1f} % of the {len(held_out.numbers)} held-out photos were classified "
            f"correctly; predict answers {NONE_OF_THESE} below a probability of {classifier.threshold:.2f}"
        )
    if report.settings.method == "few-shot":
        lines.append(_adapted_on_top(method, report))
    elif held_out is not None and held_out.evaluation == 0 and method not in CLOSED_FORM:
        lines.append("The head alone did best on them, so the rest of the network was left as it was.")
    size, written = options.out.stat().st_size, f" and {page}" if options.report else ""
    lines.append(f"{options.out}: {method}, {size / 1000:,.0f} kB, in {duration(report.seconds)}{written}")
    return lines

"""`python -m metakm fit`: turn a folder of photos into a classifier."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from metakm.cli.exit_code import exit_code
from metakm.cli.flags import read_options, require
from metakm.cli.progress import Progress, duration, log_line
from metakm.cli.signals import StopRequest
from metakm.io.files import write_text
from metakm.learning.malloc import keep_freed_memory
from metakm.photos.api import fit_listing
from metakm.photos.classifier import PhotoClassifier
from metakm.photos.fitting import FitReport, Fitting
from metakm.photos.listing import list_folder
from metakm.photos.methods import CLOSED
from metakm.photos.options import FitSettings
from metakm.photos.page import render_page
from metakm.photos.training import Fit

PROGRAM = "python -m metakm fit"


@dataclass(frozen=True, kw_only=True)
class FitOptions(FitSettings):
    """Adapt a pretrained network to the classes of a folder of photos.

    The folder has one folder of photos a class, from 1 to 1,000s each.
    """

    photos: tyro.conf.Positional[Path]
    """Folder with one folder of photos a class."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("classifier.safetensors")
    """The pack, replaced if it is there."""
    report: bool = True
    """Write a page beside it, of the same name with .html: curve, confusion matrix, the photos it gets wrong."""
    resume: bool = False
    """Go on with a fit that was stopped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.out.suffix == ".safetensors", "out", "a .safetensors file", self.out)

    def settings(self) -> FitSettings:
        """Those that are not the command's alone."""
        names = [field.name for field in dataclasses.fields(FitSettings)]
        return FitSettings(**{name: getattr(self, name) for name in names})


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 a file that cannot be written, 2 the user's mistake, 130 stopped."""
    return exit_code(lambda: _fit(read_options(FitOptions, PROGRAM, arguments)))


def _fit(options: FitOptions) -> int:
    keep_freed_memory()
    listing = list_folder(options.photos)
    checkpoint = options.out.with_name(f".{options.out.name}.checkpoint")
    with StopRequest() as stop, _Steps(stop) as steps:
        classifier = fit_listing(
            listing, options.settings(), checkpoint=checkpoint, resume=options.resume, begin=steps.begin,
            advance=steps.advance,
        )  # fmt: skip
    classifier.save(options.out)
    checkpoint.unlink(missing_ok=True)
    report = classifier.report_
    assert report is not None, "it was fitted just now"
    page = options.out.with_suffix(".html")
    if options.report:
        write_text(page, render_page(options.photos.name, classifier, report))
    print("\n".join(_summary(options, classifier, report, page)))  # noqa: T201
    return 0


def _adapted_on_top(method: str, report: FitReport) -> str:
    """Whether more than the classifier of a meta-trained network was made, and why."""
    if report.held_out is None:
        return "No photos were held out, so the classifier is class means and the network was left as it was."
    if method in CLOSED or report.held_out.mark == 0:
        return "Adapting the network to these photos did not help on photos held out, so it was left as it was."
    return "Adapting the network to these photos helped on photos held out."


class _Steps:
    """Progress of a fit, whose steps are known once the photos are read; ends it where a stop is requested."""

    def __init__(self, stop: StopRequest) -> None:
        self.stop = stop
        self.progress: Progress | None = None
        self.counted = 0

    def __enter__(self) -> _Steps:
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress is not None:
            self.progress.__exit__(None, None, None)

    def begin(self, fitting: Fitting) -> None:
        """Say what is about to be done."""
        for skipped in fitting.store.skipped:
            log_line(f"skipped {skipped.path}: {skipped.reason}")
        counts = fitting.store.counts()
        log_line(
            f"{sum(counts)} photos of {len(counts)} classes ({min(counts)} to {max(counts)} each), "
            f"{fitting.settings.method} on {fitting.base.name} at {fitting.preprocessing.size} px"
        )
        if not fitting.splits:
            log_line("No photos are held out: probabilities have a stored temperature, and no accuracy is known.")
        self.progress = Progress("fit", max(1, fitting.steps), unit="step")

    def advance(self, loss: float | None, fit: Fit) -> None:
        """After a step, or at the start of a part (without a loss), which may be in its middle."""
        if self.progress is not None and (loss is not None or fit.course.step):
            self.progress.advance(1 if loss is not None else fit.course.step, loss=loss)
        if self.stop.requested:
            raise KeyboardInterrupt


def _summary(options: FitOptions, classifier: PhotoClassifier, report: FitReport, page: Path) -> list[str]:
    lines = list(report.comparison)
    method, held_out = classifier.pack.photos["method"], report.held_out
    if held_out is not None:
        lines.append(
            f"{100 * held_out.accuracy:.1f} % of {len(held_out.numbers)} photos that were held out are right; below a "
            f"probability of {classifier.threshold:.2f} a photo is none of the classes"
        )
    if report.settings.method == "few-shot":
        lines.append(_adapted_on_top(method, report))
    elif held_out is not None and held_out.mark == 0 and method not in CLOSED:
        lines.append("The classifier alone did best on them, so the network was left as it was.")
    size, written = options.out.stat().st_size, f" and {page}" if options.report else ""
    lines.append(f"{options.out}: {method}, {size / 1000:,.0f} kB, in {duration(report.seconds)}{written}")
    return lines

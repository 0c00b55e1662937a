"""The page of a fit: what it says of itself, the curve, the confusion matrix and the photos it gets wrong."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

import torch
from PIL import Image

from metakm.photos.classifier import PhotoClassifier
from metakm.photos.fitting import FitReport
from metakm.photos.selection import HeldOut
from metakm.photos.training import TrainingState

MOST_WRONG = 60
MOST_CLASSES = 40  # in the confusion matrix
_THUMB = 112
_OPTIMISTIC = (
    "The accuracy is a little optimistic: how long to train, the temperature and, where methods were compared, the "
    "method were chosen on the same photos."
)


def render_page(name: str, classifier: PhotoClassifier, report: FitReport) -> str:
    """The page as HTML. It loads nothing from elsewhere and runs no script."""
    style = resources.files("metakm.report").joinpath("page.css").read_text(encoding="utf-8")
    parts = [_head(classifier, report), _curve(report.state), _comparison(report.comparison)]
    if report.held_out is not None:
        parts += [_confusion(report.held_out, report.store.classes), _wrong(report.held_out, report)]
    parts.append(_skipped(report))
    title = f"metakm fit: {escape(name)}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header><h1>{title}</h1></header>\n<main>\n{''.join(parts)}</main>\n</body>\n</html>\n"
    )


def _head(classifier: PhotoClassifier, report: FitReport) -> str:
    header, counts = classifier.pack.photos, report.store.counts()
    lines = [
        ("base", f"{header['base']}, {classifier.preprocessing.size} px"),
        ("method", header["method"]),
        ("photos", f"{sum(counts)} of {len(counts)} classes, {min(counts)} to {max(counts)} each"),
        ("temperature", f"{classifier.temperature:.3f}"),
        ("threshold for (none of these)", f"{classifier.threshold:.3f}"),
        ("seconds", f"{report.seconds:.0f}"),
    ]
    if report.held_out is not None:
        held = report.held_out
        right = f"{100 * held.accuracy:.1f} % of {len(held.numbers)}, by fits that did not see them"
        lines[3:3] = [("accuracy on held-out photos", right), ("negative log-likelihood", f"{held.nll:.3f}")]
    rows = "".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>\n' for k, v in lines)
    note = f"<p class='note'>{_OPTIMISTIC}</p>" if report.held_out is not None else ""
    return _section("fit", "The fit", f'<div class="scroll"><table><tbody>\n{rows}</tbody></table></div>{note}')


def _curve(state: TrainingState) -> str:
    if not state.losses:
        return ""
    width, height, steps = 440, 180, state.losses[-1][0]
    top = max(loss for _, loss in state.losses) or 1.0
    points = " ".join(f"{40 + (width - 50) * s / steps:.1f},{10 + (height - 35) * (1 - v / top):.1f}"
                      for s, v in state.losses)  # fmt: skip
    svg = (
        f'<svg class="chart" role="img" viewBox="0 0 {width} {height}" '
        f'aria-label="Training loss from {state.losses[0][1]:.2f} to {state.losses[-1][1]:.2f}">'
        f'<path d="M40 10V{height - 25}H{width - 10}" fill="none" stroke="var(--faint)"/>'
        f'<polyline points="{points}" fill="none" stroke="var(--series-0)" stroke-width="1.6"/>'
        f'<text x="2" y="18" font-size="11">{top:.2f}</text><text x="2" y="{height - 25}" font-size="11">0</text>'
        f'<text x="{width - 10}" y="{height - 8}" font-size="11" text-anchor="end">step {steps}</text></svg>'
    )
    caption = '<figcaption class="caption">Loss of each step of the final fit, on all photos.</figcaption>'
    return _section("curve", "Curve", f"<figure>{svg}{caption}</figure>")


def _comparison(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    return _section("methods", "Methods", f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>")


def _confusion(held: HeldOut, classes: Sequence[str]) -> str:
    if len(classes) > MOST_CLASSES:
        return ""
    counts = torch.zeros(len(classes), len(classes), dtype=torch.long)
    for label, answer in zip(held.labels.tolist(), held.logits.argmax(dim=1).tolist(), strict=True):
        counts[label, answer] += 1
    header = "".join(f'<th scope="col" class="number">{escape(name)}</th>' for name in classes)
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{_cells(row, own)}</tr>\n'
        for own, (name, row) in enumerate(zip(classes, counts.tolist(), strict=True))
    )
    table = (
        f"<table><caption>Rows: true class; columns: predicted class</caption><thead><tr><th></th>{header}</tr></thead>"
    )
    return _section(
        "confusion", "Confusion matrix", f'<div class="scroll">{table}<tbody>\n{rows}</tbody></table></div>'
    )


def _cells(row: Iterable[int], own: int) -> str:
    cells = []
    for place, count in enumerate(row):
        colour = "" if not count else f' style="color:var(--{"right" if place == own else "wrong"})"'
        cells.append(f'<td class="number"{colour}>{count or ""}</td>')
    return "".join(cells)


def _wrong(held: HeldOut, report: FitReport) -> str:
    """The wrong answers, the surest first."""
    probabilities, answers = held.probabilities.max(dim=1)
    wrong = (answers != held.labels).nonzero().flatten()
    order = wrong[probabilities[wrong].argsort(descending=True)].tolist()
    figures = []
    for place in order[:MOST_WRONG]:
        number, answer = held.numbers[place], report.store.classes[int(answers[place])]
        label = report.store.classes[int(held.labels[place])]
        text = f"{label}, predicted as {answer} ({float(probabilities[place]):.2f})"
        source = _data_url(report.store.pixels([number])[0])
        figures.append(
            f'<figure><img src="{source}" alt="{escape(text)}" width="{_THUMB}" height="{_THUMB}">'
            f'<figcaption class="caption">{escape(text)}<br>{escape(_file_name(report, number))}</figcaption></figure>'
        )
    left = f"<p class='note'>{len(order) - MOST_WRONG} more are not shown.</p>" if len(order) > MOST_WRONG else ""
    content = f'<div class="charts">{"".join(figures)}</div>{left}' if figures else "<p>None.</p>"
    return _section("wrong", "Photos it gets wrong", content)


def _file_name(report: FitReport, number: int) -> str:
    return getattr(report.store.photos[number], "name", "") or f"photo {number}"


def _data_url(pixels: torch.Tensor) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((_THUMB, _THUMB)).save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _skipped(report: FitReport) -> str:
    if not report.store.skipped:
        return ""
    lines = "".join(f"<li><code>{escape(str(s.path))}</code>: {escape(s.reason)}</li>" for s in report.store.skipped)
    return _section("skipped", "Files left out", f'<ul class="notes">{lines}</ul>')


def _section(anchor: str, title: str, content: str) -> str:
    return f'<section id="{anchor}">\n<h2>{title}</h2>\n{content}\n</section>\n'

"""Progress on standard error: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 15.0  # between plain lines, and between reports


class Progress:
    """Counts `total` steps, `start` of them already done, and smooths the loss and accuracy of the latest ones.

    Args:
        report: called whenever a plain line is due, even with a bar or when quiet, with the figures as JSON values.
    """

    def __init__(
        self,
        description: str,
        total: int,
        start: int = 0,
        unit: str = "it",
        *,
        quiet: bool = False,
        report: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        self.description, self.total, self.start, self.done, self.unit = description, total, start, start, unit
        self.loss: float | None = None
        self.accuracy: float | None = None
        self.began = self.spoke = time.monotonic()
        self.quiet, self.report = quiet, report
        bar = sys.stderr is not None and sys.stderr.isatty() and not quiet
        self.bar = tqdm(total=total, initial=start, desc=description, unit=unit, leave=False) if bar else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()

    def advance(self, steps: int = 1, loss: float | None = None, accuracy: float | None = None) -> None:
        """Count steps, and show them when an update is due."""
        self.done += steps
        self.loss = _smooth(self.loss, loss)
        self.accuracy = _smooth(self.accuracy, accuracy)
        if self.bar is not None:
            self.bar.set_postfix_str(", ".join(self._figures()), refresh=False)
            self.bar.update(steps)
        if time.monotonic() - self.spoke >= LINE_SECONDS or self.done == self.total:
            self.spoke = time.monotonic()
            self._report_progress()

    def _report_progress(self) -> None:
        rate = (self.done - self.start) / max(1e-9, self.spoke - self.began)
        if self.bar is None:
            left = duration((self.total - self.done) / rate)
            parts = [*self._figures(), f"{rate:.2f} {self.unit}/s", f"{left} left"]
            self.note(f"{self.description} {self.done}/{self.total}: {', '.join(parts)}")
        figures = {"loss": self.loss, "accuracy": self.accuracy, "per_second": round(rate, 3)}
        self.report({"phase": self.description, "done": self.done, "total": self.total, **figures})

    def note(self, line: str) -> None:
        """Print a line without disturbing the bar."""
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        elif not self.quiet:
            log_line(line)

    def _figures(self) -> list[str]:
        figures = (("loss", self.loss), ("accuracy", self.accuracy))
        return [f"{name} {value:.3f}" for name, value in figures if value is not None]


def log_line(line: str) -> None:
    """Print to standard error, if there is one (daemons and GUI programs may have none)."""
    if sys.stderr is not None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201


def duration(seconds: float) -> str:
    """Minutes and seconds, and hours if there are any."""
    return str(tqdm.format_interval(seconds))


def _smooth(mean: float | None, value: float | None) -> float | None:
    return value if mean is None or value is None else 0.95 * mean + 0.05 * value

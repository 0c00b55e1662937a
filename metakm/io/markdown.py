"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[object], lines: Iterable[Sequence[object]]) -> str:
    """A table of cells as they are, without a newline at its end; the caller escapes what must be."""
    rows = [f"| {' | '.join(map(str, line))} |" for line in (header, *lines)]
    return "\n".join([rows[0], f"{'|---' * len(header)}|", *rows[1:]])

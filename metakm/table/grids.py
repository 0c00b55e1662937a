"""The content of a table in any format: grids of text, and lists below them."""

from __future__ import annotations

from typing import NamedTuple


class Grid(NamedTuple):
    """A header and lines of as many texts."""

    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


class TitledList(NamedTuple):
    """A title and its items."""

    title: str
    items: tuple[str, ...]


class Layout(NamedTuple):
    """Grids, then lists with at least one item; a terminal breaks lines at `width` characters, or nowhere if None."""

    grids: tuple[Grid, ...]
    listings: tuple[TitledList, ...] = ()
    width: int | None = None

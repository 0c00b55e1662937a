"""Matplotlib, whose import must not depend on where a command was started."""

from __future__ import annotations

import os
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def import_matplotlib() -> ModuleType:
    """Matplotlib, which is slow to import and needed for a picture only.

    It refuses to be imported where MPLBACKEND names a backend that is not installed here, as a notebook's does in the
    commands that it starts. No backend for a screen is needed, so the variable is set aside for the import.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib as mpl
        import matplotlib.figure
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return mpl


def new_figure(**options: Any) -> Figure:
    """A figure for a file, by the arguments of `matplotlib.figure.Figure`."""
    figure: Figure = import_matplotlib().figure.Figure(**options)
    return figure

"""matplotlib figures that are saved to files, without a display or a backend of the user's."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from metakm.errors import missing_extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(**options: Any) -> Figure:
    """An empty figure; `savefig` picks the canvas for the file's format."""
    import_matplotlib()
    from matplotlib.figure import Figure  # slow to import, and only needed for a picture

    return Figure(**options)


def figure_bytes(figure: Figure, form: str = "png", dpi: int = 120) -> bytes:
    """The content of a picture's file in the format `form`, such as png, svg or pdf."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=dpi)
    return buffer.getvalue()


def import_matplotlib(task: str = "pictures") -> ModuleType:
    """Import matplotlib even if MPLBACKEND names a backend that is not installed here, or there is no home folder.

    Notebooks pass their own MPLBACKEND to the processes that they start. One that is installed takes effect as usual. A
    command that draws at the end calls this first, so that it fails before its work.

    Raises:
        UserError: matplotlib is not installed; `task` names what needs it.
    """
    if sys.modules.get("matplotlib") is None:
        backend = os.environ.pop("MPLBACKEND", None)
        _ensure_settings_folder()
        try:
            import matplotlib as mpl
        except ImportError as error:
            raise missing_extra("matplotlib", "report", task) from error
        finally:
            if backend is not None:
                os.environ["MPLBACKEND"] = backend
        with contextlib.suppress(ValueError):
            if backend:
                mpl.rcParams["backend"] = backend
    return sys.modules["matplotlib"]


def _ensure_settings_folder() -> None:
    """Give matplotlib a temporary folder for its settings and font list if there is no home."""
    try:
        Path.home()
    except RuntimeError:
        if "MPLCONFIGDIR" not in os.environ:
            os.environ["MPLCONFIGDIR"] = folder = tempfile.mkdtemp(prefix="metakm-matplotlib-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)

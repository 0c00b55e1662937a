"""config.json of a run, of any kind, as JSON values. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metakm.errors import UserError


def read_config_file(folder: Path) -> dict[str, Any] | None:
    """The values in config.json, unchecked; None without the file.

    Raises:
        UserError: it cannot be read, or is not a JSON object.
    """
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"Expected the run's settings in {path}, got {error}; copy the file again") from error
    if not isinstance(values, dict):
        raise UserError(f"Expected a JSON object in {path}, got {values!r:.200}; copy the file again")
    return values

"""Values of a config as JSON, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metakm.errors import UserError
from metakm.fields import flag


def json_value(value: object) -> Any:
    """A path as its text, a tuple as a list; the rest is JSON as it is."""
    if isinstance(value, tuple):
        return [json_value(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def as_float(field: str, value: float) -> float:
    """A JSON number; 1 and 1.0 are the same value, so they must give the same run_id."""
    try:
        return float(value)
    except OverflowError:
        raise UserError(f"Expected {flag(field)} to be a number below 1e308, got a larger one") from None


def is_json_of(value: object, hint: Any) -> bool:
    """Whether a JSON value is one of a field of type `hint`."""
    if hint in (int, float, bool, str):
        number = hint is float and isinstance(value, int) and not isinstance(value, bool)
        return number or (isinstance(value, hint) and (hint is bool or not isinstance(value, bool)))
    if hint == tuple[Path, ...]:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if hint in (Path | None, str | None):
        return value is None or isinstance(value, str)
    if hint == int | None:
        return value is None or is_json_of(value, int)
    return isinstance(value, str)  # Path, Literal

"""The fields that a run's config may have, their types, and values checked against them."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, get_type_hints

from metakm.config.json_values import as_float, is_json_of
from metakm.config.protocol import FROM_PRESET, LEGACY_DEFAULTS
from metakm.config.run_config import RunConfig, options_of
from metakm.errors import UserError, unknown_name
from metakm.options import SharedOptions, flat_name, option_types


def checked_values(values: Any) -> dict[str, Any]:
    """The values of a run's config, as `RunConfig.from_flat` takes them.

    Raises:
        UserError: not an object, an unknown or missing key, or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise UserError(f"Expected a config to be a JSON object, got {values!r:.200}")
    algo = values.get("algo", RunConfig.algo)
    hints = flat_types(algo if isinstance(algo, str) else RunConfig.algo)
    for key in values:
        if key not in hints:
            raise unknown_name("config key", key, hints)
    for field in dataclasses.fields(RunConfig):
        if field.default is FROM_PRESET and field.name not in {*values, *LEGACY_DEFAULTS, "ways", "options"}:
            raise UserError(f"Expected config key {field.name!r}, got none; add it")
    for name, value in values.items():
        if not is_json_of(value, hints[name]):
            raise UserError(f"Expected config key {name!r} to be {hints[name]}, got {value!r:.200}; fix it")
    numbers = {k: as_float(k, v) for k, v in values.items() if hints[k] is float}
    paths = {k: Path(v) for k, v in values.items() if v is not None and hints[k] in (Path, Path | None)}
    plugin = tuple(Path(p) for p in values.get("plugin", ()))
    chunk = values.get("task_chunk") or None  # 0 in files of metakm 0.2
    return {**values, **numbers, **paths, "plugin": plugin, "task_chunk": chunk}


def flat_types(algo: str) -> dict[str, Any]:
    """The type of each field that `RunConfig.flat` may have for a strategy, shared options that it lacks included.

    Raises:
        UserError: an unknown strategy.
    """
    own = {flat_name(algo, name): hint for name, hint in option_types(options_of(algo)).items()}
    return {**_common_types(), **own}


@functools.cache
def _common_types() -> dict[str, Any]:
    hints = {**get_type_hints(RunConfig), **option_types(SharedOptions)}
    return {name: hint for name, hint in hints.items() if name != "options"}


def all_flat_types() -> dict[str, Any]:
    """The type of each field that the run of some known strategy may have."""
    from metakm.strategies.registry import available_strategies  # brings torch along

    return {name: hint for algo in available_strategies() for name, hint in flat_types(algo).items()}

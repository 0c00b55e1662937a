"""What a search may vary: fields of `RunConfig`, each with a range or a list of choices."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from metakm.config import EXECUTION_FIELDS, RunConfig, all_flat_types
from metakm.errors import UserError, unknown_name
from metakm.io.files import expanded
from metakm.options import NEEDS, flat_name, option_types
from metakm.strategies.registry import strategy_class

# These define the task, the budget or the measurement, and must be the same for all trials.
_SAME_FOR_ALL = {
    *("algo", "dataset", "ways", "shots", "preset", "image_size", "split", "split_seed", "seed", "iterations"),
    *("init_from", "patience"),
}
_MEASUREMENT = {"test_inner_steps", "test_queries", "eval_tasks", "val_tasks", "val_every", "select"}
_COMMON = {field.name for field in dataclasses.fields(RunConfig)}
_PAIRS = (("zero_head", "normal_head"), ("first_order", "second_order_from"))
_EXCLUSIVE = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}  # if it is on, it switches the other off
_FIXED = {*_SAME_FOR_ALL, *_MEASUREMENT, *EXECUTION_FIELDS}


@dataclasses.dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`, integers for an integer field; `log`: uniform in the logarithm."""

    low: float
    high: float
    log: bool = False

    @property
    def probes(self) -> tuple[Any, ...]:
        """Values to check in place of all."""
        return self.low, self.high

    def __contains__(self, value: Any) -> bool:
        return bool(self.low <= value <= self.high)

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}" + (", logarithmic" if self.log else "")


@dataclasses.dataclass(frozen=True)
class Choices:
    """Only these values."""

    values: tuple[Any, ...]

    @property
    def probes(self) -> tuple[Any, ...]:
        """Values to check in place of all."""
        return self.values

    def __contains__(self, value: Any) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))


Dimension = Range | Choices
Space = dict[str, Dimension]


def named_spaces() -> list[str]:
    """Names of the built-in spaces."""
    names = (Path(file.name) for file in _folder().iterdir())
    return sorted(name.stem for name in names if name.suffix == ".toml")


def read_space(name: str) -> Space:
    """A space by its name, or from a TOML file.

    Raises:
        UserError: no such name or file, invalid TOML, a field that a search cannot vary, or values that are neither a
            range nor choices.
    """
    if name in named_spaces():
        text = (_folder() / f"{name}.toml").read_text(encoding="utf-8")
    elif name.endswith(".toml") or Path(name).is_file():
        try:
            text = expanded(name, "--space").read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"Expected --space to name a TOML file, got {name} ({error})") from error
    else:
        raise unknown_name("--space, unless it is a TOML file,", name, named_spaces())
    space = {field: _dimension(field, value, name) for field, value in _parsed(text, name).items()}
    if not space:
        raise UserError(f"Expected at least one field in {name}, got none; add one, such as meta_lr = [1e-3, 3e-3]")
    return _needed_first(space)


def check_space(space: Mapping[str, Dimension], config: RunConfig) -> list[RunConfig]:
    """Make sure that the config of a trial accepts every value; return the configs that were tried, one for each.

    Raises:
        UserError: a value of the wrong type or out of its field's range.
    """
    tried = []
    for field, dimension in space.items():
        for value in dimension.probes:
            try:
                tried.append(with_values(config, {**dict.fromkeys(needed(field), True), field: value}))
            except UserError as error:
                raise UserError(f"Expected the space to have values of {field}, got {value!r}: {error}") from error
    return tried


def with_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """The config with these values, as in JSON. An option is dropped if they switch off what it needs.

    Raises:
        UserError: a value of the wrong type or out of range.
    """
    changed = {**config.to_json(), **values}
    for field, other in _EXCLUSIVE.items():
        if values.get(field) and other in changed:
            changed[other] = type(changed[other])(0)
    for field, need in NEEDS.items():
        if field in changed and not changed[need]:
            changed[field] = type(changed[field])(0)
    return RunConfig.from_json(changed)


def split_for(algo: str, space: Space, fixed: frozenset[str]) -> tuple[Space, dict[str, str]]:
    """The part of a space that a strategy can vary, and why each other field is left out.

    Args:
        fixed: fields that are set on the command line.
    """
    dropped = {}
    for field in space:
        if field in fixed:
            dropped[field] = "fixed on the command line"
        elif refuses(algo, field):
            dropped[field] = "this strategy has no such option"
    for field in space:
        if field not in dropped and any(need in dropped and refuses(algo, need) for need in needed(field)):
            dropped[field] = "the option that it requires is not available"
    return {field: dimension for field, dimension in space.items() if field not in dropped}, dropped


def active(field: str, values: Mapping[str, Any], config: RunConfig) -> bool:
    """Whether a field has an effect next to these values of the others: what it needs is on, what excludes it off."""
    has_all = all(values.get(need, getattr(config.shared, need)) for need in needed(field))
    return has_all and not (field in _EXCLUSIVE and values.get(_EXCLUSIVE[field]))


def refuses(algo: str, field: str) -> bool:
    """Whether a strategy lacks this option."""
    cls = strategy_class(algo)
    return field not in _COMMON and field not in {flat_name(algo, name) for name in option_types(cls.options)}


def needed(field: str) -> Iterator[str]:
    """What a field needs to have an effect, from the nearest on."""
    while (need := NEEDS.get(field)) is not None:
        field = need
        yield field


def _needed_first(space: Space) -> Space:
    return dict(sorted(space.items(), key=lambda item: len([*needed(item[0])])))


def _folder() -> Any:
    return resources.files("metakm.search") / "spaces"


def _parsed(text: str, name: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise UserError(f"Expected {name} to be TOML, got: {error}; fix the file") from error


def _dimension(field: str, value: Any, name: str) -> Dimension:
    if field not in (known := all_flat_types()):
        raise unknown_name(f"a field in {name}", field, known.keys() - _FIXED)
    if field in _FIXED:
        raise UserError(
            f"Expected hyper-parameters in {name}, got {field}, which must be the same for all trials; take it out "
            "and give it as a flag, if it has one"
        )
    if isinstance(value, list) and value:
        if len({repr(v) for v in value}) != len(value):
            raise UserError(f"Expected different choices of {field} in {name}, got {value}; drop one")
        return Choices(tuple(float(v) if known[field] is float and type(v) is int else v for v in value))
    if isinstance(value, dict) and {"low", "high"} <= {*value} <= {"low", "high", "log"}:
        return _range(field, known[field], value, name)
    raise UserError(
        f"Expected {field} in {name} to be {{low=, high=, log=}} or [choices], got {value!r}; write one of these"
    )


def _range(field: str, kind: Any, value: dict[str, Any], name: str) -> Range:
    low, high, log = value["low"], value["high"], value.get("log", False)
    kinds = {int: (int,), float: (int, float)}.get(kind, ())
    if type(low) not in kinds or type(high) not in kinds or not isinstance(log, bool):
        said = "whole numbers" if kinds == (int,) else "numbers" if kinds else "choices, not a range,"
        raise UserError(f"Expected {said} for {field} in {name}, got {value}; change it")
    if not (low < high and (low > 0 or not log)):
        raise UserError(f"Expected low < high{' and low > 0' if log else ''} for {field} in {name}, got {value}")
    return Range(low, high, log)

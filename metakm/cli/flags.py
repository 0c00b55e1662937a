"""Command-line flags from the fields of a dataclass, with tyro, in the same way for every command."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro

from metakm.errors import unknown_name
from metakm.fields import flag
from metakm.io.files import expanded

_T = TypeVar("_T")
_CONFIG = (tyro.conf.DisallowNone,)


def read_options(options: type[_T], prog: str, arguments: Sequence[str] | None = None, default: _T | None = None) -> _T:
    """Read a dataclass from flags. --help exits with code 0, a flag that tyro refuses with code 2.

    The help opens with the docstring of `options`. tyro puts each of its paragraphs on one line, so keep each below 80
    characters.

    Args:
        arguments: those of the process if None.
        default: values of the flags that are not given; the dataclass's own defaults if None.

    Raises:
        UserError: a value that is not among its flag's choices, or that the dataclass refuses.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    start: dict[str, Any] = {} if default is None else {"default": default}
    read: _T = _read(options, prog, arguments, **start)
    return read


def read_some_options(options: type[_T], prog: str, arguments: Sequence[str]) -> tuple[_T, list[str]]:
    """Like `read_options`, but return the arguments that are not flags of `options` instead of refusing them."""
    read, rest = _read(options, prog, arguments, return_unknown_args=True)
    return read, rest


def _read(options: type[Any], prog: str, arguments: Sequence[str], **more: Any) -> Any:
    _check_choices(options, arguments)
    read = tyro.cli(options, prog=prog, args=arguments, config=_CONFIG, **more)
    if more.get("return_unknown_args"):
        return with_paths_expanded(read[0]), read[1]
    return with_paths_expanded(read)


def read_subcommand(commands: Any, prog: str, arguments: Sequence[str] | None = None) -> Any:
    """Read one of a union of dataclasses, each a subcommand; see `read_options`."""
    return with_paths_expanded(tyro.cli(commands, prog=prog, args=arguments, config=_CONFIG))


def with_paths_expanded(options: _T) -> _T:
    """The dataclass with ~ expanded in its paths, as no shell does in `--out=~/results`.

    Raises:
        UserError: the home of an unknown user.
    """
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        value = getattr(options, field.name)
        if isinstance(value, Path):
            changed[field.name] = expanded(value, flag(field.name))
        elif isinstance(value, tuple) and any(isinstance(item, Path) for item in value):
            changed[field.name] = tuple(expanded(item, flag(field.name)) for item in value)
    return dataclasses.replace(options, **changed)  # type: ignore[type-var]


def texts_given(arguments: Sequence[str], names: Sequence[str]) -> dict[str, str | None]:
    """The raw values of the named fields' flags, unchecked; None for a flag that is not given."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        parser.add_argument(flag(name), default=None, nargs="?")
    return vars(parser.parse_known_args(arguments)[0])


def list_given(arguments: Sequence[str], name: str) -> list[str]:
    """All raw values of a flag that takes several, unchecked."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(flag(name), default=[], nargs="*", dest="texts")
    texts: list[str] = parser.parse_known_args(arguments)[0].texts
    return texts


def _check_choices(options: type[Any], arguments: Sequence[str]) -> None:
    """Check choices before tyro does, whose message lists them without the nearest one."""
    hints = get_type_hints(options)
    choices = {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}
    for name, text in texts_given(arguments, list(choices)).items():
        if text is not None and text not in choices[name]:
            raise unknown_name(flag(name), text, choices[name])

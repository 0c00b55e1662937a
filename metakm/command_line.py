"""Flags to `RunConfig`. Flags and help derive from the config's fields; their defaults from the preset asked for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro

from metakm.config import RunConfig
from metakm.errors import unknown_name
from metakm.presets import default_ways, preset_config


def parse(arguments: Sequence[str] | None = None) -> RunConfig:
    """Read the command line. Prints help and exits with code 0, or an error and exits with code 2, where it must.

    Raises:
        UserError: a value out of range.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    check_choices(RunConfig, arguments)
    return tyro.cli(
        RunConfig,
        prog="python -m metakm.run",
        args=arguments,
        default=_defaults(arguments),
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
    )


def check_choices(options: type[Any], arguments: Sequence[str]) -> None:
    """Look at the flags of `options` that have a few choices; tyro names the choices too, but not the nearest.

    Raises:
        UserError: a value that is none of them.
    """
    hints = get_type_hints(options)
    choices = {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}
    given = vars(_given(arguments, list(choices)))
    for name, known in choices.items():
        if given[name] is not None and given[name] not in known:
            raise unknown_name(f"--{name.replace('_', '-')}", given[name], known)


def _given(arguments: Sequence[str], names: Sequence[str]) -> argparse.Namespace:
    """The texts behind the named fields' flags, None where there is none."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        parser.add_argument(f"--{name.replace('_', '-')}", default=None, nargs="?")
    return parser.parse_known_args(arguments)[0]


def _defaults(arguments: Sequence[str]) -> RunConfig:
    """The preset's config for the setting named in the arguments; values that do not parse are left to tyro."""
    known = _given(arguments, ("preset", "algo", "dataset", "ways", "shots"))
    dataset = known.dataset or "glyphs"
    preset = known.preset if known.preset in ("quick", "paper") else "quick"
    try:
        ways, shots = int(known.ways or default_ways(dataset)), int(known.shots or 1)
        return preset_config(preset, known.algo or "km", dataset, ways, shots)
    except ValueError:
        return preset_config(preset, known.algo or "km", dataset)

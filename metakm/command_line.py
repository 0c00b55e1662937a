"""Flags to `RunConfig`. Flags and help derive from the config's fields; their defaults from the preset asked for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import tyro

from metakm.config import RunConfig
from metakm.presets import default_ways, preset_config


def parse(arguments: Sequence[str] | None = None, prog: str = "python -m metakm.run") -> RunConfig:
    """Read the command line. Prints help and exits with code 0, or an error and exits with code 2, where it must.

    Raises:
        UserError: a value out of range.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return tyro.cli(
        RunConfig,
        prog=prog,
        args=arguments,
        default=_defaults(arguments),
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _defaults(arguments: Sequence[str]) -> RunConfig:
    """The preset's config for the setting named in the arguments; values that do not parse are left to tyro."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--preset", "--algo", "--dataset", "--ways", "--shots"):
        parser.add_argument(flag, default=None, nargs="?")
    known, _ = parser.parse_known_args(arguments)
    dataset = known.dataset or "glyphs"
    preset = known.preset if known.preset in ("quick", "paper") else "quick"
    try:
        ways, shots = int(known.ways or default_ways(dataset)), int(known.shots or 1)
        return preset_config(preset, known.algo or "km", dataset, ways, shots)
    except ValueError:
        return preset_config(preset, known.algo or "km", dataset)

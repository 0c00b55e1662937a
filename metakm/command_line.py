"""Flags to `RunConfig`, and exit codes.

Flags and help derive from the config's fields; their defaults from the preset asked for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import tyro

from metakm.config import RunConfig
from metakm.errors import UserError
from metakm.presets import default_ways, preset_config


def parse(arguments: Sequence[str] | None = None) -> RunConfig:
    """Read the command line. Prints help and exits with code 0, or an error and exits with code 2, where it must.

    Raises:
        UserError: a value out of range.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return tyro.cli(
        RunConfig,
        prog="python -m metakm.run",
        args=arguments,
        default=_defaults(arguments),
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def exit_code(command: Callable[[], int]) -> int:
    """Call a command that makes runs; print what ended it early.

    The command's own code, or 1 for a file that cannot be written, 2 for the user's mistake, 130 for an interrupt.
    """
    try:
        return command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except OSError as error:
        print(f"error: {error}; mend that, then add --resume to the same command", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("Stopped. If the run folder has a checkpoint, --resume goes on from it.", file=sys.stderr)  # noqa: T201
        return 130


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

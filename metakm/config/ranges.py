"""Ranges of ways and shots, as text such as `5-20`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from metakm.errors import UserError
from metakm.fields import flag

RANGED = {"ways": 2, "shots": 1}
"""Fields that may be ranges in meta-training, as `train_<name>`, and the least number of each."""


def read_range(text: str, name: str) -> range:
    """The numbers of a range of ways or shots.

    Raises:
        UserError: no range, or one that begins too low or has a single number.
    """
    match = re.fullmatch(r"(\d{1,6})-(\d{1,6})", text)
    if match is None or not RANGED[name] <= int(match[1]) < int(match[2]):
        raise UserError(
            f"Expected a range of {name} from {RANGED[name]} or more such as 5-20, got {text!r}; give a single number as "
            f"{flag(name)}"
        )
    return range(int(match[1]), int(match[2]) + 1)


def with_range_flags(arguments: Sequence[str]) -> list[str]:
    """The arguments with `--ways 5-20` as `--train-ways 5-20`, and likewise for shots.

    Raises:
        UserError: both are there.
    """
    changed = list(arguments)
    for place, argument in enumerate(arguments):
        for name in RANGED:
            following = arguments[place + 1] if place + 1 < len(arguments) else ""
            given, equals, text = argument.partition("=")
            if given == flag(name) and _is_range(text if equals else following):
                if any(a.partition("=")[0] == flag(f"train_{name}") for a in arguments):
                    raise both_ranges(name)
                changed[place] = flag(f"train_{name}") + equals + text
    return changed


def both_ranges(name: str) -> UserError:
    """The error where a range is given twice."""
    return UserError(f"Expected a range in {flag(name)} or in {flag(f'train_{name}')}, got both; drop one of them")


def _is_range(text: str) -> bool:
    return re.fullmatch(r"\d+-\d+", text) is not None

"""Numbers that are given as text: ranges of ways and shots, such as `5-20`, and splits, such as `64/16/20`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from metakm.errors import UserError
from metakm.fields import flag, require

RANGED = {"ways": 2, "shots": 1}
"""Fields that may be ranges in meta-training, as `train_<name>`, and the least number of each."""


def read_class_split(text: str) -> tuple[int, ...]:
    """The numbers of training, validation and test classes of a `--split`, such as 64/16/20.

    Raises:
        UserError: anything but three numbers.
    """
    valid = re.fullmatch(r"[1-9]\d{0,5}(/[1-9]\d{0,5}){2}", text) is not None
    require(valid, "split", "three numbers of classes, such as 64/16/20", text)
    return tuple(map(int, text.split("/")))


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
                if any(a.partition("=")[0].replace("_", "-") == flag(f"train_{name}") for a in arguments):
                    raise both_ranges(name)
                changed[place] = flag(f"train_{name}") + equals + text
    return changed


def both_ranges(name: str) -> UserError:
    """The error where a range is given twice."""
    return UserError(f"Expected a range in {flag(name)} or in {flag(f'train_{name}')}, got both; drop one of them")


def _is_range(text: str) -> bool:
    return re.fullmatch(r"\d+-\d+", text) is not None

"""The error for mistakes that the user can fix, and words for messages."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable


class UserError(Exception):
    """Bad input or a missing file. Commands print only its text, without a traceback, and exit with code 2.

    The text reads "Expected ..., got ...; do this".
    """


def missing_extra(package: str, extra: str, task: str) -> UserError:
    """Build the error for a package of an extra that is not installed; `task` names what needs it."""
    return UserError(f"Expected {package} for {task}, got none; run `pip install 'metakm[{extra}]'`")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Build the error for a failed look-up: the value, the sorted known names and the nearest of them."""
    names = sorted(known)
    return UserError(f"Expected {kind} to be one of {', '.join(names)}, got {name!r}{did_you_mean(name, names)}")


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", cutoff: float = 0.6) -> str:
    """`; did you mean 'x'?` with the nearest known name, or `otherwise` if none is as near as `cutoff` (0 to 1)."""
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else otherwise


def one_line(text: object, limit: int | None = None) -> str:
    """A text, or that of another library's error, on one line of at most `limit` characters."""
    return " ".join(str(text).split())[:limit]


def describe_error(error: BaseException) -> str:
    """The error on one line, with the line of code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    text = one_line(error)
    return f"{type(error).__name__}: {text}" + (f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else "")


def counted(number: int, noun: str) -> str:
    """The number with its noun, such as `1 run` or `2 runs`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

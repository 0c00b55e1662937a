"""The error for mistakes that the user can fix, and words for messages."""

from __future__ import annotations

import difflib
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
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UserError(f"Expected {kind} to be one of {', '.join(names)}, got {name!r}{hint}")


def one_line(error: BaseException, limit: int | None = None) -> str:
    """The text of another library's error on one line, of at most `limit` characters."""
    return " ".join(str(error).split())[:limit]


def counted(number: int, noun: str) -> str:
    """The number with its noun, such as `1 run` or `2 runs`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

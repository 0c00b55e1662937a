"""What a field of a config or of options is called in a command, and the check of its value."""

from __future__ import annotations

import os
from pathlib import Path

from metakm.errors import UserError


def flag(name: str) -> str:
    """The flag of a field, such as `--inner-lr`, or `--km.depth` for `km.depth`."""
    return "--" + name.replace("_", "-")


def off_flag(name: str) -> str:
    """The flag that turns off a field that is on by default, such as `--no-zero-head`."""
    prefix, _, own = name.rpartition(".")
    return flag(f"{prefix}.no_{own}" if prefix else f"no_{own}")


def require(condition: bool, field: str, expected: str, value: object) -> None:
    """Raise a UserError that names the field's flag, unless the condition holds."""
    if not condition:
        raise UserError(f"Expected {flag(field)} to be {expected}, got {value}")


def require_folder(path: Path, field: str) -> None:
    """Raise a UserError if `path` cannot be a folder because it, or a folder above it, is a file."""
    there = _nearest(path.absolute())
    got = f"the file {path}" if there == path.absolute() else f"{path}, but {there} is a file"
    require(there.is_dir(), field, "a folder", got)


def require_writable_folder(path: Path, field: str) -> None:
    """Raise a UserError if `path` is no folder that can be written or made. Makes nothing, so a refusal leaves none."""
    there = _nearest(path.absolute())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UserError(
            f"Expected {flag(field)} to be a folder that can be written, got {there}; choose another {flag(field)}"
        )


def require_file(path: Path, field: str) -> None:
    """Raise a UserError if `path` cannot be written: a folder is there, or its own folder is a file or protected."""
    require(not path.is_dir(), field, "a file", f"the folder {path}")
    above = _nearest(path.absolute().parent)
    require(above.is_dir(), field, "a file in a folder", f"{path}, but {above} is a file")
    require(os.access(above, os.W_OK), field, "a file in a folder that can be written", f"{path}")


def _nearest(path: Path) -> Path:
    """The path, or the first of the folders above it that exists."""
    return next(each for each in (path, *path.parents) if each.exists())

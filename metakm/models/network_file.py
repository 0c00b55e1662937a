"""Networks from a Python file of the user's."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from metakm.errors import UserError, describe_error, unknown_name
from metakm.io.files import expanded
from metakm.registry import run_file


def build_from_file(path: Path, name: str, flag: str = "--base") -> nn.Module:
    """Run the file, see `run_file`, and build its class `name` without arguments.

    Args:
        flag: that named the file.

    Raises:
        UserError: no such file or class, the file or the class raises, or what it builds is no module.
    """
    path = expanded(path, flag)
    if not path.is_file():
        raise UserError(f"Expected a Python file as {flag[2:]}, got no file {path}; write it as file.py:Class")
    try:
        module = run_file(path)
        build = getattr(module, name, None)
        network = build() if callable(build) else None
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code
        raise UserError(f"Expected {path}:{name} to build a network, got {describe_error(error)}") from error
    if build is None:
        own = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, nn.Module)]
        raise unknown_name(f"a class of {path}", name, own)
    if not isinstance(network, nn.Module):
        raise UserError(f"Expected {path}:{name} to build an nn.Module, got {type(network).__name__}; name its class")
    return network

"""Networks from a Python file of the user's."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from torch import nn

from metakm.errors import UserError, unknown_name
from metakm.io.files import expanded
from metakm.registry import describe_error


def build_from_file(path: Path, name: str, flag: str = "--base") -> nn.Module:
    """Run the file and build its class `name` without arguments.

    Args:
        flag: that named the file.

    Raises:
        UserError: no such file or class, the file or the class raises, or what it builds is no module.
    """
    path = expanded(path, flag)
    spec = importlib.util.spec_from_file_location(f"metakm_network_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"Expected a Python file as {flag[2:]}, got no file {path}; write it as file.py:Class")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
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

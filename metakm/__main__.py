"""`python -m metakm` lists the commands; `python -m metakm run ...` is `python -m metakm.run ...`."""

from __future__ import annotations

import ast
import importlib
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import metakm
from metakm.cli.exit_code import exit_code
from metakm.errors import unknown_name

WIDTH = 80


def commands() -> dict[str, str]:
    """What each command does, in a line, by its name behind `metakm.`; `run` first.

    A command is a module, or the `__main__` of a package, whose docstring opens with how to call it; none is imported.
    """
    package = Path(__file__).parent
    found = {}
    for path in package.rglob("*.py"):
        name = ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__main__")
        opening = f"`python -m metakm.{name}"
        text = path.read_text(encoding="utf-8")
        if text.startswith(f'"""{opening}'):
            summary = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
            found[name] = re.sub(r"^`[^`]*`:?\s+", "", summary).replace("`", "")
    return dict(sorted(found.items(), key=lambda item: (item[0] != "run", item[0])))


def command_module(name: str) -> ModuleType:
    """The module with the `main` of a command."""
    module = importlib.import_module(f"metakm.{name}")
    return importlib.import_module(f"metakm.{name}.__main__") if hasattr(module, "__path__") else module


def listing(found: Mapping[str, str]) -> str:
    """The commands with what they do, in lines of at most 80 characters."""
    column = max(len(name) for name in found) + 4
    lines = [
        f"  {name}".ljust(column) + textwrap.shorten(summary, WIDTH - column, placeholder=" ...")
        for name, summary in found.items()
    ]
    head = f"metakm {metakm.__version__}: few-shot meta-learning for PyTorch"
    usage = "usage: python -m metakm.<command> [options]; --help after a command lists them"
    return "\n".join([head, "", usage, "", *lines, "", "python -m metakm --version prints the version."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: that of the command; 0 after the list or the version, 2 for an unknown name."""
    first, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    found = commands()
    if first in found:
        return int(command_module(first).main(rest))
    return exit_code(lambda: _answer(first, found), "repeat the same command", resumes=False)


def _answer(first: str, found: Mapping[str, str]) -> int:
    if first in ("-h", "--help"):
        print(listing(found))  # noqa: T201
    elif first == "--version":
        print(f"metakm {metakm.__version__}")  # noqa: T201
    else:
        raise unknown_name("command", first, [*found, "--help", "--version"])
    return 0


if __name__ == "__main__":
    sys.exit(main())

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
from typing import NamedTuple

import metakm
from metakm.cli.exit_code import exit_code
from metakm.errors import unknown_name

WIDTH = 80


class Command(NamedTuple):
    """A module with a `main`, and a line on what it does."""

    module: str
    summary: str


def commands() -> dict[str, Command]:
    """The commands by name; `run` first.

    A command is a module, or the `__main__` of a package, whose docstring opens with how to call it: as a module,
    `python -m metakm.<name>`, or, if no module can have the name because a public function has it,
    `python -m metakm <name>`. None is imported.
    """
    package = Path(__file__).parent
    found = {}
    for path in package.rglob("*.py"):
        module = ".".join(path.relative_to(package).with_suffix("").parts)
        match = re.match(r'"""`python -m metakm(?:\.| )([\w.]+)', text := path.read_text(encoding="utf-8"))
        if match and (match[0].endswith(f" {match[1]}") or match[1] == module.removesuffix(".__main__")):
            summary = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
            found[match[1]] = Command(f"metakm.{module}", re.sub(r"^`[^`]*`:?\s+", "", summary).replace("`", ""))
    return dict(sorted(found.items(), key=lambda item: (item[0] != "run", item[0])))


def command_module(name: str) -> ModuleType:
    """The module with the `main` of a command."""
    return importlib.import_module(commands()[name].module)


def listing(found: Mapping[str, Command]) -> str:
    """The commands with what they do, in lines of at most 80 characters."""
    column = max(len(name) for name in found) + 4
    lines = [
        f"  {name}".ljust(column) + textwrap.shorten(summary.removesuffix("."), WIDTH - column, placeholder=" ...")
        for name, (_, summary) in found.items()
    ]
    head = f"metakm {metakm.__version__}: few-shot meta-learning for PyTorch"
    usage = "usage: python -m metakm <command> [options]; --help after a command lists them"
    return "\n".join([head, "", usage, "", *lines, "", "python -m metakm --version prints the version."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: that of the command; 0 after the list or the version, 2 for an unknown name."""
    first, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    found = commands()
    if first in found:
        return exit_code(lambda: int(command_module(first).main(rest)))
    return exit_code(lambda: _answer(first, found))


def _answer(first: str, found: Mapping[str, Command]) -> int:
    if first in ("-h", "--help"):
        print(listing(found))  # noqa: T201
    elif first == "--version":
        print(f"metakm {metakm.__version__}")  # noqa: T201
    else:
        raise unknown_name("command", first, [*found, "--help", "--version"])
    return 0


if __name__ == "__main__":
    sys.exit(main())

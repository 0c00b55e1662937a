"""`python -m metakm.list`: list strategies, datasets, backbones and other names."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from metakm.cli.exit_code import exit_code
from metakm.cli.flags import read_options
from metakm.registry import Registry, load_plugin, registries


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """List strategies, datasets, backbones, modulators and table layouts.

    Those of plugins and of installed packages are included.
    """

    plugin: Annotated[tuple[Path, ...], tyro.conf.arg(help_behavior_hint="(default: none)")] = ()
    """Python files that register more; they run with your permissions."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 a user error."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return exit_code(lambda: _list(arguments))


def _list(arguments: Sequence[str]) -> int:
    options = read_options(ListOptions, "python -m metakm.list", arguments)
    known = registries()  # imports torch, which --help should not
    for plugin in options.plugin:
        load_plugin(plugin)
    for registry in sorted(known, key=lambda registry: registry.group):
        lines = _summaries(registry)
        width = max(map(len, lines)) + 2
        print(registry.group.removeprefix("metakm.").replace("_", " "))  # noqa: T201
        print(*(f"  {name:{width}}{text}".rstrip() for name, text in lines.items()), sep="\n")  # noqa: T201
    return 0


def _summaries(registry: Registry[Any]) -> dict[str, str]:
    """A line about each entry."""
    entries = {name: registry.get(name) for name in registry.names()}
    found = {name: getattr(entry, "summary", "") or _first_line(entry) for name, entry in entries.items()}
    return {name: text.replace("`", "") for name, text in found.items()}


def _first_line(thing: object) -> str:
    return (thing.__doc__ or "").strip().split("\n")[0]


if __name__ == "__main__":
    sys.exit(main())

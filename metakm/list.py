"""`python -m metakm.list`: the strategies, datasets and backbones that are known, plugins included."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from metakm.cli.exit_code import exit_code
from metakm.cli.flags import read_options
from metakm.registry import load_plugin


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """List what --algo, --dataset and --backbone may name."""

    plugin: Annotated[tuple[Path, ...], tyro.conf.arg(help_behavior_hint="(default: none)")] = ()
    """Python files that register more; they run with your rights."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 the user's mistake."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return exit_code(lambda: _list(arguments), "repeat the same command", resumes=False)


def _list(arguments: Sequence[str]) -> int:
    options = read_options(ListOptions, "python -m metakm.list", arguments)
    from metakm.data.registry import available_datasets, dataset_entry  # brings torch along, which --help should not
    from metakm.models.build import backbones
    from metakm.strategies.registry import available_strategies, strategy_class

    for plugin in options.plugin:
        load_plugin(plugin)
    summaries = {
        "strategies": {name: _first_line(strategy_class(name)) for name in available_strategies()},
        "datasets": {name: _summary(dataset_entry(name)) for name in available_datasets()},
        "backbones": {name: _first_line(backbones.get(name)) for name in backbones.names()},
    }
    for kind, lines in summaries.items():
        width = max(map(len, lines)) + 2
        print(kind)  # noqa: T201
        print(*(f"  {name:{width}}{said}".rstrip() for name, said in lines.items()), sep="\n")  # noqa: T201
    return 0


def _summary(entry: object) -> str:
    title, family, ways = (getattr(entry, name) for name in ("title", "family", "ways"))
    return f"{title}: {family}, {ways}-way by default"


def _first_line(thing: object) -> str:
    return (thing.__doc__ or "").strip().split("\n")[0]


if __name__ == "__main__":
    sys.exit(main())

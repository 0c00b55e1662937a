"""`python -m metakm.packs`: task packs: plan, inspect, merge, push, pull."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from metakm.cli.exit_code import exit_code
from metakm.cli.flags import read_subcommand
from metakm.modulation.pack_file import read_pack
from metakm.modulation.storage import paper_plan, plan_storage, table
from metakm.packs.card import values_by_part
from metakm.packs.hub_commands import Pull, Push
from metakm.packs.merge_command import Merge


@dataclass(frozen=True)
class PlanOptions:
    """Compare storage for many tasks: a network each, or one base and a pack each (Sec. V).

    Writes the files of an untrained network to a temporary folder and measures them.
    """

    base: str = "resnet50"
    """A torchvision network."""
    tasks: int = 100
    """Number of tasks."""
    classes: tuple[int, ...] = (100, 196, 102, 101)
    """Classes per task; with several numbers, the mean of their packs. Default: the paper's four transfer tasks."""
    norm: Literal["group", "batch"] = "group"
    """Group norm in place of batch norm, as in the paper, or the network as it is."""
    classifier: str = "fc"
    """Name of the network's head."""

    def __call__(self) -> str:
        """The table to print."""
        measured = plan_storage(self.base, self.tasks, self.classes, self.norm, self.classifier)
        return table({self.base: measured, "paper, ResNet-50": paper_plan()})


@dataclass(frozen=True)
class Inspect:
    """Check that a pack is complete, and show its header."""

    file: tyro.conf.Positional[Path]
    """A file that metakm fit or save_pack() wrote."""

    def __call__(self) -> str:
        """The text to print."""
        pack = read_pack(self.file)
        layers = pack.modulation["layers"]
        lines = {
            "task": pack.task or "(not named)",
            "base": pack.base,
            "classes": f"{len(pack.classes)}: {', '.join(pack.classes)}" if pack.classes else "(not named)",
            "metrics": ", ".join(f"{name} {value:g}" for name, value in pack.metrics.items()) or "(none)",
            "modulation": ", ".join(f"{k}={v}" for k, v in pack.modulation.items() if k != "layers"),
            "layers": f"{len(layers)}: {', '.join(layers[:4])}{', ...' if len(layers) > 4 else ''}",
            "values": ", ".join(f"{part} {n:,}" for part, n in sorted(values_by_part(pack).items())),
            "size": f"{self.file.stat().st_size:,} bytes",
        }
        if not layers:
            lines |= {"modulation": "none", "layers": "none"}
        if pack.photos:
            lines["photos"] = f"{pack.photos['method']} on {pack.photos['base']}, by metakm fit"
        return "\n".join(f"{name:<12}{value}" for name, value in lines.items())


Command = (
    Annotated[PlanOptions, tyro.conf.subcommand("plan")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Merge, tyro.conf.subcommand("merge")]
    | Annotated[Push, tyro.conf.subcommand("push")]
    | Annotated[Pull, tyro.conf.subcommand("pull")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 a file that cannot be written, 2 a user error."""
    return exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    command: PlanOptions | Inspect | Merge | Push | Pull = read_subcommand(Command, "python -m metakm.packs", arguments)
    print(command())  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The runs of a sweep and the state of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from metakm.config import RunConfig
from metakm.data.splits import SPLITS
from metakm.errors import UserError
from metakm.io.lock import holder
from metakm.run.build import load_splits
from metakm.run.checkpoint import config_changes, load_checkpoint
from metakm.run.command_line import parse
from metakm.run.folder import RunFolder
from metakm.run.loading import read_config
from metakm.run.summary import format_metric
from metakm.sweep.options import SweepOptions

RunState = Literal["done", "in use", "to resume", "to do", "blocked"]


class Planned(NamedTuple):
    """One run and its state; `note` has the accuracy, the process that uses it, or why it is blocked."""

    config: RunConfig
    state: RunState
    note: str = ""
    iteration: int = 0  # meta-training iterations done

    @property
    def missing(self) -> bool:
        """Whether it can be run now."""
        return self.state in ("to do", "to resume")


def expand(options: SweepOptions, rest: Sequence[str]) -> list[RunConfig]:
    """The runs: all strategies and settings with the first seed, then with the next.

    Args:
        rest: arguments of `metakm.run` for every run.

    Raises:
        UserError: an unknown name, or a value out of range.
    """
    if not options.dataset:
        raise UserError("Expected table3, a dataset's name or --dataset, got none; name one")
    ways = [] if options.ways is None else ["--ways", str(options.ways)]
    first_seed = []
    for dataset in dict.fromkeys(options.dataset):
        for shots in dict.fromkeys(options.shots):
            for algo in dict.fromkeys(options.algo):
                own = ["--algo", algo, "--dataset", dataset, *ways, "--shots", str(shots), "--resume"]
                first_seed.append(parse([*own, *rest], prog="python -m metakm.sweep"))
    return [dataclasses.replace(config, seed=seed) for seed in range(options.seeds) for config in first_seed]


def inspect(config: RunConfig) -> Planned:
    """Look into the run's folder. Writes nothing."""
    folder = RunFolder(config.folder)
    if (user := holder(folder.lock.path)) is not None:
        return Planned(config, "in use", user)
    row = folder.read_row()
    if row is not None and row["run_id"] != config.run_id and not _same_but_older(folder, config):
        return Planned(config, "blocked", f"{folder.path} has another run, {row.get('run_id')}; choose another --out")
    if row is not None and row["status"] == "done":
        return Planned(config, "done", format_metric(config.algo, row["accuracy"], row["ci95"]), config.iterations)
    if folder.irreplaceable:
        return Planned(config, "blocked", f"{folder.unresumable}, and is not done; choose another --out")
    if not folder.checkpoint.exists():
        return Planned(config, "to do")
    try:
        iteration = int(load_checkpoint(folder.checkpoint, config)["loop"]["iteration"])
    except (UserError, LookupError, TypeError, ValueError) as error:
        return Planned(config, "blocked", f"its checkpoint cannot be read: {error}")
    return Planned(config, "to resume", f"at iteration {iteration} of {config.iterations}", iteration)


def make_plan(configs: Iterable[RunConfig]) -> list[Planned]:
    """Inspect all runs; a run whose data are missing is blocked.

    The data of missing runs are decoded here, once, so that several processes need not each do it.
    """
    plan = [inspect(config) for config in configs]
    sources = {_source(p.config): p.config for p in plan if p.missing}
    errors = {source: _data_error(config) for source, config in sources.items()}
    return [
        p._replace(state="blocked", note=error) if p.missing and (error := errors[_source(p.config)]) else p
        for p in plan
    ]


def _same_but_older(folder: RunFolder, config: RunConfig) -> bool:
    """Whether the folder holds this same run, written before the config had all of its fields."""
    try:
        return not config_changes(read_config(folder.path).identity(), config)
    except UserError:
        return False


def _source(config: RunConfig) -> tuple[Any, ...]:
    return config.dataset, config.data_root, config.image_size, config.split, config.split_seed


def _data_error(config: RunConfig) -> str:
    try:
        for split in SPLITS:
            load_splits(config, split)
    except UserError as error:
        return str(error)
    return ""

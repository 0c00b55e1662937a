"""What is to be searched: each strategy with its settings and its part of the space, checked before anything starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metakm.config import EXECUTION_FIELDS, RunConfig
from metakm.config.json_values import json_value
from metakm.device import resolve_device
from metakm.errors import UserError
from metakm.io.files import expanded
from metakm.registry import load_plugin
from metakm.run.build import build_learner, make_sampler, try_losses
from metakm.run.command_line import parse
from metakm.run.user_files import file_hashes
from metakm.search.options import PROG, SearchOptions, fields_given, search_command
from metakm.search.space import Choices, Space, check_space, read_space, split_for
from metakm.strategies.base import Strategy
from metakm.strategies.class_training import ClassTraining

FOLLOWS = {"km-proto": "km"}  # a strategy that takes the values of another one's winner
_SHARED = ("dataset", "ways", "shots", "image_size", "seed", "iterations", "val_tasks", "val_every")
_INNER = ("inner_lr", "inner_steps", "test_inner_steps")


@dataclasses.dataclass(frozen=True)
class StrategySearch:
    """The search of one strategy.

    config: the settings that all its trials share; space: what they vary; dropped: fields of the space that they do not
    vary, and why; followers: the settings of strategies that take its winner's values; outside: the settings that are
    not tried, as the space, or the test steps, do not have their values.
    """

    config: RunConfig
    space: Space
    dropped: dict[str, str]
    followers: tuple[RunConfig, ...] = ()
    outside: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def algo(self) -> str:
        """Its strategy."""
        return self.config.algo


@dataclasses.dataclass(frozen=True)
class SearchPlan:
    """All strategies, and what is the same for them."""

    options: SearchOptions
    space: Space
    searches: tuple[StrategySearch, ...]
    split_hashes: dict[str, str]
    rest: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The shell command that makes this plan again."""
        return search_command(self.options, self.rest)

    @property
    def out(self) -> Path:
        """Folder of the search."""
        config = self.searches[0].config
        return Path("search") / config.setting if self.options.out is None else expanded(self.options.out, "--out")

    def protocol(self) -> dict[str, Any]:
        """What must be the same for all strategies and calls, as JSON values."""
        config, options = self.searches[0].config, self.options
        shared = {name: getattr(config, name) for name in _SHARED}
        flags = fields_given(self.rest) - {*_SHARED, *EXECUTION_FIELDS}
        values = config.flat()
        if flags:  # which no search of before 0.3 recorded
            shared["flags"] = {name: json_value(values[name]) for name in sorted(flags)}
        if files := file_hashes(config):
            shared["files"] = files
        space = {field: repr(dimension) for field, dimension in self.space.items()}
        own = {"tasks": options.tasks, "test_steps": sorted(set(options.test_steps))}
        return {**shared, "space": space, **own, "split_hash": self.split_hashes}


def make_plan(options: SearchOptions, rest: Sequence[str]) -> SearchPlan:
    """Read the space and make every strategy's settings.

    Args:
        rest: arguments of `metakm.run` for every trial.

    Raises:
        UserError: an unknown name, a value out of range, or data that are missing.
    """
    space, algos = read_space(options.space), tuple(dict.fromkeys(options.algo))
    configs = {algo: _config(algo, options, rest) for algo in algos}
    for plugin in configs[algos[0]].plugin:
        load_plugin(plugin)
    searched = [algo for algo in algos if FOLLOWS.get(algo) not in algos]
    searches = []
    for algo in searched:
        own, dropped = split_for(algo, space, fields_given(rest))
        if not own:
            raise _nothing_to_vary(algo)
        followers = tuple(configs[other] for other in algos if FOLLOWS.get(other) == algo)
        searches.append(StrategySearch(configs[algo], own, dropped, followers))
    for search in searches:
        _check(search)
    matter = tuple(_that_matter(search, options.test_steps) for search in searches)
    hashes = {split: make_sampler(matter[0].config, split).dataset.split_hash for split in ("train", "val")}
    return SearchPlan(options, space, matter, hashes, tuple(rest))


def _that_matter(search: StrategySearch, test_steps: tuple[int, ...]) -> StrategySearch:
    """Without the fields that have no effect on the strategy, and with what lies outside the rest.

    Raises:
        UserError: no field is left.
    """
    dataset = make_sampler(search.config, "train").dataset
    without = _without_effect(build_learner(search.config, dataset.image_shape, dataset.n_episode_classes).strategy)
    dropped = {field: why for field, why in without.items() if field in search.space}
    own = {field: dimension for field, dimension in search.space.items() if field not in dropped}
    if not own:
        raise _nothing_to_vary(search.algo)
    settings, tried = search.config.flat(), {**own, "test_inner_steps": Choices(test_steps)}
    outside = {f: settings[f] for f, values in tried.items() if f not in without and settings[f] not in values}
    return dataclasses.replace(search, space=own, dropped=search.dropped | dropped, outside=outside)


def _without_effect(strategy: Strategy) -> dict[str, str]:
    """Fields of the inner loop that change nothing, and why."""
    if not strategy.parameter_counts()[0]:
        return dict.fromkeys(_INNER, "this strategy adapts nothing in an inner loop")
    if isinstance(strategy, ClassTraining):
        return {"inner_steps": "this strategy is trained without an inner loop"}
    return {}


def _nothing_to_vary(algo: str) -> UserError:
    return UserError(f"Expected a space that {algo} can vary, got none of its fields left; add some to it")


def _config(algo: str, options: SearchOptions, rest: Sequence[str]) -> RunConfig:
    ways = [] if options.ways is None else ["--ways", str(options.ways)]
    own = ["--algo", algo, "--dataset", options.dataset, *ways, "--shots", str(options.shots)]
    config = parse([*own, "--seed", str(options.seed), *rest], prog=PROG)
    if config.iterations < 1:
        raise UserError("Expected --iterations to be at least 1 in a search, got 0")
    return config


def _check(search: StrategySearch) -> None:
    """Refuse now what would stop a trial: values, data, device."""
    config = search.config
    tried = check_space(search.space, config)
    resolve_device(config.device)
    make_sampler(config, "val")
    if "queries" in search.space and not config.test_queries:
        raise UserError(
            "Expected --test-queries with a space that varies queries, got none, so that trials would be measured on "
            "other tasks; give it"
        )
    for each in (config, *tried):
        require_buildable(each)


def require_buildable(config: RunConfig) -> None:
    """Refuse a config whose trial could not begin.

    Raises:
        UserError: data that cannot be drawn, or a strategy that cannot be built or learn from a task.
    """
    sampler = make_sampler(config, "train")
    learner = build_learner(config, sampler.dataset.image_shape, sampler.dataset.n_episode_classes)
    try_losses(learner, sampler.batch(index=0, tasks=1), config)

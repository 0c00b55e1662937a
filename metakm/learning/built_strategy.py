"""What a learner must know of a strategy that it is given as an object, not by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from metakm.errors import UserError
from metakm.options import flat_name, option_types
from metakm.strategies import Strategy
from metakm.strategies.interfaces import Construction


def construction_of(
    algo: str, strategy: Strategy, ways: int | None, given: Mapping[str, Any], for_named: Mapping[str, Any]
) -> Construction:
    """How it was built, and the options that it has together with those that are given to the learner.

    Args:
        algo: its name.
        ways: None for those that it was built for, if it came from `make_strategy`.
        given: options by their own or flat names. Those that the constructor takes can only be what they are.
        for_named: what a learner takes for a strategy that it builds itself; None, or "full" to train, by default.

    Raises:
        UserError: other ways, or another option of the constructor, than it was built with; or something `for_named`.
    """
    for name, value in for_named.items():
        if value not in (None, "full"):
            raise UserError(
                f"Expected {name} only with a strategy given by name, got a strategy that is already built; name the "
                f"strategy, or leave {name} out"
            )
    made = strategy.construction or Construction(ways, None, {})
    if ways is not None and made.ways != ways:
        raise UserError(f"Expected the ways that the strategy was built for, {made.ways}, got {ways}; leave it out")
    own = {name.removeprefix(f"{algo}."): value for name, value in given.items()}
    for name in constructor_options(type(strategy)) & own.keys():
        has = made.options.get(name, getattr(type(strategy).options, name))
        if own[name] != has:
            raise UserError(
                f"Expected a strategy that was built with {flat_name(algo, name)}={own[name]!r}, got one with {has!r}; "
                "give it to make_strategy, or name the strategy"
            )
    return made._replace(options={**made.options, **own})


def require_known(strategy: Strategy, ways: int | None) -> None:
    """Refuse to describe a strategy whose class was called directly, if it may have been given options or ways.

    Raises:
        UserError: it cannot be described.
    """
    if strategy.construction is None and (ways is None or constructor_options(type(strategy))):
        raise UserError(
            f"Expected {type(strategy).__qualname__} from make_strategy, which remembers the ways and options that a "
            "file must have, got one that was built directly; build it with make_strategy"
        )


def constructor_options(cls: type[Strategy]) -> set[str]:
    """The options that a strategy's constructor takes, by their own names."""
    return option_types(cls.options).keys() & inspect.signature(cls).parameters.keys()

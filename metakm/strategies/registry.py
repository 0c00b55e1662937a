"""Strategies by name: built in, from the entry-point group `metakm.strategies`, or from a plugin file."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from metakm.errors import UserError, describe_error
from metakm.models.conversion import require_uncompiled
from metakm.options import OF_THE_LEARNER, Options, from_keywords, option_types
from metakm.registry import Registry, full_name
from metakm.strategies.base import Strategy
from metakm.strategies.independence import require_independent_tasks
from metakm.strategies.interfaces import Construction

_S = TypeVar("_S", bound=type[Strategy])
TRAIN_CLASSES = "train_classes"
# Former class attributes, which would otherwise be ignored silently.
_RENAMED = {"variants": "the dataclass register_strategy(name, options=...)"}


def register_strategy(name: str, options: type[Options] | None = None) -> Callable[[_S], _S]:
    """Class decorator: make the strategy known under `name`, for `--algo name` and `make_strategy`.

    Args:
        options: the frozen dataclass of what a run may change of it, see `metakm.options`; that of its base class if
            None.

    Raises:
        UserError: the name is taken by another class, the class is not a `Strategy`, or an option is no keyword of its
            constructor, unless the learner acts on it.
    """

    def register(cls: _S) -> _S:
        if not (isinstance(cls, type) and issubclass(cls, Strategy)):
            raise UserError(f"Expected {name!r} to decorate a subclass of metakm.Strategy, got {cls!r}")
        for old, new in _RENAMED.items():
            if hasattr(cls, old):
                raise UserError(f"{full_name(cls)} has {old!r}, which is now {new}; use that")
        if options is not None:
            cls.options = options
        for option in {*option_types(cls.options)} - OF_THE_LEARNER:
            if option not in inspect.signature(cls).parameters:
                raise UserError(f"Expected {full_name(cls)}.__init__ to take its option {option!r}, got none; add it")
        strategies.add(name, cls)
        return cls

    return register


strategies: Registry[type[Strategy]] = Registry(
    "strategy", "metakm.strategies", adopt=lambda name, loaded: register_strategy(name)(loaded)
)


def available_strategies() -> tuple[str, ...]:
    """Sorted names of all strategies, those of installed entry points included."""
    return strategies.names()


def strategy_class(name: str) -> type[Strategy]:
    """The class registered as `name`.

    Raises:
        UserError: no such strategy; the message lists the known names and the nearest. Or an installed package claims
            the name of another strategy, built-in ones included.
    """
    return strategies.get(name)


def strategies_of_any_ways() -> tuple[str, ...]:
    """Sorted names of the strategies whose tasks may have any number of classes."""
    return tuple(name for name in available_strategies() if strategy_class(name).any_ways)


def registered_name(cls: type[Strategy]) -> str:
    """The name that a class is registered by, or that of the class."""
    return next((name for name, known in strategies.entries.items() if known is cls), cls.__qualname__)


def takes_train_classes(cls: type[Strategy]) -> bool:
    """Whether a strategy is told the number of training classes: its constructor has a keyword for it."""
    return TRAIN_CLASSES in inspect.signature(cls).parameters


def make_strategy(
    name: str, backbone: nn.Module | None, ways: int, *, train_classes: int | None = None, **options: Any
) -> Strategy:
    """Build the strategy `name` on `backbone` for `ways` classes.

    Args:
        backbone: None for a strategy with a network of its own (`own_network`).
        train_classes: number of classes in the episodes of meta-training (`FewShotDataset.n_episode_classes`), for a
            strategy whose constructor has this keyword; others do not get it.

    Raises:
        UserError: an unknown name, an option that the strategy does not have or a value that it refuses, a compiled
            backbone, a constructor that fails, a strategy that is not made of the backbone, or layers that mix the
            tasks of a batch.
    """
    cls = strategy_class(name)
    if backbone is not None:
        require_uncompiled(backbone)
    if cls.own_network != (backbone is None):
        wanted = "None, as it brings a network of its own" if cls.own_network else "a network"
        raise UserError(f"Expected the backbone of {name!r} to be {wanted}, got {type(backbone).__name__}; pass that")
    known = [p for p in inspect.signature(cls).parameters if p not in ("backbone", "ways", TRAIN_CLASSES)]
    for option in options:
        if option not in known:
            raise UserError(
                f"Expected options of {name!r} out of {', '.join(known) or '(none)'}, got {option!r}; leave it out"
            )
    from_keywords(name, cls.options, {key: options[key] for key in options.keys() & option_types(cls.options).keys()})
    told = {TRAIN_CLASSES: train_classes} if takes_train_classes(cls) else {}
    try:
        strategy = cls(backbone, ways, **told, **options)
    except UserError:
        raise
    except Exception as error:  # a plugin's code may raise anything
        raise UserError(
            f"Expected {full_name(cls)}(backbone, ways) to build a strategy, got {describe_error(error)}"
        ) from error
    if not isinstance(getattr(strategy, "adapted", None), nn.Module):
        raise UserError(f"Expected {cls.__qualname__}.__init__ to set self.adapted to a module; set it")
    if backbone is not None and not _shares_a_part(strategy, backbone):
        raise UserError(
            f"Expected {full_name(cls)} to be made of the backbone that it is given, got none of its layers (a copy "
            "has others); use it, or set own_network = True, for runs with --backbone own"
        )
    require_independent_tasks(strategy)
    strategy.construction = Construction(ways, told.get(TRAIN_CLASSES), options)
    return strategy


def _shares_a_part(strategy: Strategy, backbone: nn.Module) -> bool:
    parts = {id(part) for part in (*strategy.modules(), *strategy.parameters())}
    return any(id(part) in parts for part in (*backbone.modules(), *backbone.parameters()))

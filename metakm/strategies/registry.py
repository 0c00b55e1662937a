"""Strategies by name: built in, from the entry-point group `metakm.strategies`, or from a plugin file."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from metakm.errors import UserError, unknown_name
from metakm.io.files import expanded
from metakm.options import SHARED, Options, option_types
from metakm.strategies.base import Strategy
from metakm.strategies.independence import require_independent_tasks

GROUP = "metakm.strategies"

_registry: dict[str, type[Strategy]] = {}
_plugins: set[Path] = set()
_S = TypeVar("_S", bound=type[Strategy])


def register_strategy(name: str, options: type[Options] | None = None) -> Callable[[_S], _S]:
    """Class decorator: make the strategy known under `name`, for `--algo name` and `make_strategy`.

    Args:
        options: the frozen dataclass of what a run may change of it, see `metakm.options`; that of its base class if
            None.

    Raises:
        UserError: the name is taken by another class, the class is not a `Strategy`, or an option of its own is no
            keyword of its constructor.
    """

    def register(cls: _S) -> _S:
        if not (isinstance(cls, type) and issubclass(cls, Strategy)):
            raise UserError(f"Expected {name!r} to decorate a subclass of metakm.Strategy, got {cls!r}")
        taken = _registry.get(name)
        if taken is not None and taken is not cls:
            raise UserError(
                f"Expected a new strategy name for {_full_name(cls)}, got {name!r}, which {_full_name(taken)} has "
                "already; choose another name"
            )
        if options is not None:
            cls.options = options
        for option in {*option_types(cls.options)} - {*SHARED}:
            if option not in inspect.signature(cls).parameters:
                raise UserError(f"Expected {_full_name(cls)}.__init__ to take its option {option!r}, got none; add it")
        _registry[name] = cls
        return cls

    return register


def available_strategies() -> tuple[str, ...]:
    """Sorted names of all strategies, those of installed entry points included."""
    return tuple(sorted({*_registry, *(point.name for point in entry_points(group=GROUP))}))


def strategy_class(name: str) -> type[Strategy]:
    """Return the class registered as `name`.

    Raises:
        UserError: no such strategy; the message lists the known names and the nearest. Or an installed package claims
            the name of another strategy, built-in ones included.
    """
    for point in entry_points(group=GROUP, name=name):
        register_strategy(name)(_load(point))
    if name not in _registry:
        raise unknown_name("algo", name, available_strategies())
    return _registry[name]


def make_strategy(name: str, backbone: nn.Module | None, ways: int, **options: Any) -> Strategy:
    """Build the strategy `name` on `backbone` for `ways` classes.

    Args:
        backbone: None for a strategy with a network of its own (`own_network`).

    Raises:
        UserError: an unknown name, an option that the strategy does not have, a constructor that fails, a
            strategy that is not made of the backbone, or layers that mix the tasks of a batch.
    """
    cls = strategy_class(name)
    if cls.own_network != (backbone is None):
        wanted = "None, as it brings a network of its own" if cls.own_network else "a network"
        raise UserError(f"Expected the backbone of {name!r} to be {wanted}, got {type(backbone).__name__}; pass that")
    known = [p for p in inspect.signature(cls).parameters if p not in ("backbone", "ways")]
    for option in options:
        if option not in known:
            raise UserError(
                f"Expected options of {name!r} out of {', '.join(known) or '(none)'}, got {option!r}; leave it out"
            )
    try:
        strategy = cls(backbone, ways, **options)
    except UserError:
        raise
    except Exception as error:  # a plugin's code may raise anything
        raise UserError(
            f"Expected {_full_name(cls)}(backbone, ways) to build a strategy, got {_told(error)}"
        ) from error
    if not isinstance(getattr(strategy, "adapted", None), nn.Module):
        raise UserError(f"Expected {cls.__qualname__}.__init__ to set self.adapted to a module; set it")
    if backbone is not None and not _shares_a_part(strategy, backbone):
        raise UserError(
            f"Expected {_full_name(cls)} to be made of the backbone that it is given, got none of its layers (a copy "
            "has others); use it, or set own_network = True, for runs with --backbone own"
        )
    require_independent_tasks(strategy)
    return strategy


def _shares_a_part(strategy: Strategy, backbone: nn.Module) -> bool:
    parts = {id(part) for part in (*strategy.modules(), *strategy.parameters())}
    return any(id(part) in parts for part in (*backbone.modules(), *backbone.parameters()))


def load_plugin(path: str | Path) -> None:
    """Run a Python file that registers strategies, once. It runs with the rights of this process.

    Raises:
        UserError: no such file, or the file raises, or registers nothing.
    """
    path = expanded(path, "--plugin")
    if not is_plugin_file(path):
        raise UserError(f"Expected --plugin to name a Python file, got {str(path)!r}, which is not a file")
    if path.resolve() in _plugins:
        return
    name = f"metakm_plugin_{path.resolve().stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"Expected --plugin to name a .py file, got {str(path)!r}; rename it")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    before = set(_registry)
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"Expected the plugin {path} to run, got {_told(error)}") from error
    if before == set(_registry):
        raise UserError(
            f"Expected the plugin {path} to register a strategy, got none; decorate a class of it with "
            '@metakm.register_strategy("name")'
        )
    _plugins.add(path.resolve())


def _load(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:
        raise UserError(f"Expected entry point {point.value!r} to load, got {_told(error)}") from error


def is_plugin_file(path: Path) -> bool:
    """Whether there is a file to load."""
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long
        return False


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _told(error: BaseException) -> str:
    """The error on one line, with the line of code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" + (f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else "")

"""Registries: things by name, built in, from an entry-point group or from a plugin file."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from metakm.errors import UserError, describe_error, unknown_name
from metakm.io.files import expanded

_T = TypeVar("_T")
_BUILT_IN = ("metakm.strategies", "metakm.data", "metakm.models.build", "metakm.modulation", "metakm.table.layouts")

_registries: list[Registry[Any]] = []
_files: dict[Path, ModuleType] = {}  # by path: of the user's files that have registered something


class Registry(Generic[_T]):
    """Things of one kind by name.

    Args:
        kind: the word for one of them in messages, such as `strategy`.
        group: the entry-point group through which installed packages add to it.
        adopt: registers what an entry point loads, under the entry point's name; None if it registers itself when
            imported.
    """

    def __init__(self, kind: str, group: str, adopt: Callable[[str, Any], object] | None = None) -> None:
        self.kind, self.group, self._adopt = kind, group, adopt
        self.entries: dict[str, _T] = {}
        _registries.append(self)

    def add(self, name: str, entry: _T) -> None:
        """Register `entry` as `name`; one that is defined again in `__main__`, as in a notebook, replaces the former.

        Raises:
            UserError: another entry has the name.
        """
        taken = self.entries.get(name)
        again = _source(entry) == _source(taken) and _source(entry)[0] == "__main__"
        if taken is not None and taken != entry and not again:
            raise UserError(
                f"Expected a new {self.kind} name for {full_name(entry)}, got {name!r}, which {full_name(taken)} has "
                "already; choose another name"
            )
        self.entries[name] = entry

    def names(self) -> tuple[str, ...]:
        """All names, sorted, including those of installed entry points."""
        return tuple(sorted({*self.entries, *(point.name for point in installed_points(self.group))}))

    def get(self, name: str) -> _T:
        """What is registered as `name`.

        Raises:
            UserError: an unknown name, with the nearest one; or an installed package that claims the name of another
                entry, or does not register its own.
        """
        for point in installed_points(self.group):
            if point.name == name:
                self._load(point)
        if name not in self.entries:
            raise self.unknown(name)
        return self.entries[name]

    def replace(self, name: str, entry: _T) -> None:
        """Register an entry in place of any other of that name."""
        self.entries[name] = entry

    def unknown(self, name: str, *others: str) -> UserError:
        """The error for a name that is not registered; `others` are known, too."""
        said = str(unknown_name(self.kind, name, (*self.names(), *others)))
        also = " A" if said.endswith("?") else "; a"
        return UserError(f"{said}{also} plugin's names need --plugin (in Python: metakm.load_plugin)")

    def _load(self, point: EntryPoint) -> None:
        try:
            loaded = point.load()
        except Exception as error:
            raise UserError(f"Expected entry point {point.value!r} to load, got {describe_error(error)}") from error
        if self._adopt is not None:
            self._adopt(point.name, loaded)
        elif point.name not in self.entries:
            raise UserError(
                f"Expected entry point {point.value!r} to register the {self.kind} {point.name!r}, got none of that "
                "name; decorate it with the same name"
            )


@functools.cache
def installed_points(group: str) -> tuple[EntryPoint, ...]:
    """The entry points of a group. Cached, because a look-up reads the metadata of every installed package."""
    return tuple(entry_points(group=group))


def import_modules(package: str) -> None:
    """Import every module of a package, so that each registers its entries."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")


def load_plugin(path: str | Path) -> None:
    """Run a Python file that registers strategies, datasets or other things, once. It runs with this process's rights.

    Raises:
        UserError: no such file, or the file raises, or registers nothing.
    """
    path = expanded(path, "--plugin")
    if not is_plugin_file(path):
        raise UserError(f"Expected --plugin to name a Python file, got {str(path)!r}, which is not a file")
    try:
        run_file(path)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"Expected the plugin {path} to run, got {describe_error(error)}") from error
    if path.resolve() not in _files:
        raise UserError(
            f"Expected the plugin {path} to register something, got nothing; decorate what it adds, for example a "
            'strategy with @metakm.register_strategy("name")'
        )


def run_file(path: Path) -> ModuleType:
    """Run a user's Python file. One that registers something runs only once, however many flags name it.

    Its exceptions propagate.
    """
    key = path.resolve()
    if key in _files:
        return _files[key]
    alike = sum(other.stem == key.stem for other in _files)  # in other folders
    name = f"metakm_plugin_{key.stem}" + (f"_{alike + 1}" if alike else "")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"Expected --plugin to name a .py file, got {str(path)!r}; rename it")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    before = [set(registry.entries) for registry in _registries]
    try:
        spec.loader.exec_module(module)
    except BaseException:
        for registry in _registries:  # forget the file's own, so that it can be fixed and run again
            own = [key for key, entry in registry.entries.items() if _source(entry)[0] == name]
            for each in own:
                del registry.entries[each]
        raise
    if before != [set(registry.entries) for registry in _registries]:
        _files[key] = module
    return module


def is_plugin_file(path: Path) -> bool:
    """Whether the path is a file."""
    try:
        return path.is_file()
    except OSError:  # for example, the name is too long
        return False


def registries() -> tuple[Registry[Any], ...]:
    """The registries of all kinds."""
    for package in _BUILT_IN:
        importlib.import_module(package)
    return tuple(_registries)


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Undo, at the end of the block, what was registered within it. For tests."""
    known = registries()  # with their built-in entries, which stay registered
    before, files = [dict(registry.entries) for registry in known], dict(_files)
    _files.clear()
    try:
        yield
    finally:
        for registry, entries in zip(known, before, strict=True):
            registry.entries.clear()
            registry.entries.update(entries)
        _files.clear()
        _files.update(files)


def _source(entry: object) -> tuple[str, str]:
    """The module and the name there of a class or function, or of a dataset's `load`."""
    made = getattr(entry, "load", entry)
    return getattr(made, "__module__", ""), getattr(made, "__qualname__", "")


def full_name(entry: object) -> str:
    """The full name of a class or function; `str` of anything else."""
    name = getattr(entry, "__qualname__", None)
    return f"{entry.__module__}.{name}" if name else str(entry)

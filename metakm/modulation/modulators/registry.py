"""Modulators by name: built in, from the entry-point group `metakm.modulators`, or from a plugin file."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar

from torch import nn

from metakm.errors import UserError
from metakm.registry import Registry, full_name

_M = TypeVar("_M", bound=type[nn.Module])


def register_modulator(name: str) -> Callable[[_M], _M]:
    """Class decorator: make a modulator known under `name`, for `modulate(model, modulator=name)`.

    The class is called as `modulator(kernel_size, depth, activation, init)` for each convolution, and with `scale=` too
    for an exact start; see `KernelModulator`. A class whose parameters depend on the number of channels has a class
    method `for_weight(weight)`, which is called instead. Its `forward` maps a weight `[O, C / groups, kh, kw]` to one
    of the same shape.

    Raises:
        UserError: the name is taken by another class, the class is no `nn.Module`, or its constructor cannot be called
            in this way.
    """

    def register(cls: _M) -> _M:
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise UserError(f"Expected {name!r} to decorate a subclass of torch.nn.Module, got {cls!r}")
        try:
            if not hasattr(cls, "for_weight"):
                inspect.signature(cls).bind((3, 3), 2, "tanh", "identity")
        except TypeError as error:
            raise UserError(
                f"Expected {full_name(cls)}.__init__ to take kernel_size, depth, activation and init, got "
                f"{inspect.signature(cls)} ({error}); change its arguments"
            ) from error
        modulators.add(name, cls)
        return cls

    return register


modulators: Registry[type[nn.Module]] = Registry(
    "modulator", "metakm.modulators", adopt=lambda name, loaded: register_modulator(name)(loaded)
)


def available_modulators() -> tuple[str, ...]:
    """Sorted names of all modulators, those of installed entry points included."""
    return modulators.names()


def modulator_class(name: str) -> type[nn.Module]:
    """The class registered as `name`.

    Raises:
        UserError: no such modulator; the message lists the known names and the nearest.
    """
    return modulators.get(name)


def classes_called(class_name: str) -> list[type[nn.Module]]:
    """The modulators whose class has this name; entry points are loaded only if none is registered yet."""
    found = [cls for cls in modulators.entries.values() if cls.__name__ == class_name]
    return found or [cls for cls in map(modulators.get, modulators.names()) if cls.__name__ == class_name]

"""Read pickled arrays of unknown origin: only arrays, dicts, lists, strings and numbers can be built.

A pickle is a program; `find_class` decides what it may call. Here that is what numpy needs to rebuild an array or a
scalar, under the module names of numpy 1 and 2, and Python's own containers, for pickles written by Python 2 and 3.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from metakm.errors import UserError

LONGEST_RANGE = 2**20


def read_pickle(path: Path) -> Any:
    """Unpickle plain data.

    Arrays come as objects that `numpy.asarray` takes, without a copy; numpy's scalars as Python's; the dicts of
    `collections` as dicts.

    Raises:
        UserError: the pickle asks for anything else or is damaged; it names the file.
    """
    try:
        with path.open("rb") as file:
            return _Restricted(file, encoding="latin1").load()
    except UserError as error:
        raise UserError(f"{error} ({path})") from None
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"Expected a whole pickle, got {error!r} from {path}; fetch it again") from error


def _latin1(text: str, encoding: str) -> bytes:
    """Stand in for `codecs.encode`, by which protocol 2 writes bytes."""
    return text.encode({"latin1": "latin1"}[encoding])


class _Kind:
    """Stands in for `numpy.dtype`: an element type by its code, never a dtype whose state the pickle has written.

    A forged state may declare pointers to be plain bytes, and so have numpy follow addresses of the pickle's choice.
    """

    def __init__(self, code: str, *_: bool) -> None:
        if not re.fullmatch(r"[<>|=]?([biuf][1248]|[SU][0-9]{1,4})", code):
            raise UserError(
                f"Expected arrays of numbers or text, got element type {code!r:.50}; fetch the file from elsewhere"
            )
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = {"<": "<", ">": ">", "|": "|", "=": "="}[state[1]]
        self.dtype = np.dtype(order + self.dtype.str[1:])


class _Array:
    """Stands in for `numpy.ndarray`: what the pickle fills in is checked by `numpy.frombuffer`."""

    def __init__(self, array: npt.NDArray[Any] | None = None, *_: Any) -> None:
        self.array = array if isinstance(array, np.ndarray) else np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        self.array = _from_buffer(data, kind, shape, "F" if fortran else "C").array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self.array, dtype, copy=bool(copy) or dtype is not None)


def _rebuild(*_: Any) -> _Array:
    """Stand in for numpy's `_reconstruct`: an empty array, which the pickle then fills."""
    return _Array()


def _from_buffer(buffer: Any, kind: Any, shape: tuple[int, ...], order: str) -> _Array:
    """Stand in for numpy's `_frombuffer`, by which protocol 5 writes arrays."""
    if not (isinstance(buffer, bytes | bytearray | str) and isinstance(kind, _Kind)):
        raise UserError("Expected the bytes of an array of numbers, got something else; fetch the file from elsewhere")
    plain = buffer.encode("latin1") if isinstance(buffer, str) else buffer  # Python 2's str
    return _Array(np.frombuffer(plain, kind.dtype).reshape(shape, order="F" if order == "F" else "C"))


def _scalar(kind: Any, data: Any) -> Any:
    """Stand in for numpy's `scalar`: Python's own number or string."""
    return _from_buffer(data, kind, (), "C").array.item()


def _range(*bounds: int) -> range:
    """Stand in for `range`, which takes a few bytes for any number of rows."""
    rows = range(*bounds)
    if len(rows) > LONGEST_RANGE:
        raise UserError(f"Expected at most {LONGEST_RANGE} rows, got {len(rows)}; fetch the file from elsewhere")
    return rows


def _empty(*_: Any) -> dict[Any, Any]:
    """Stand in for `defaultdict`, which the pickle then fills, and for what makes its values, which nobody calls."""
    return {}


_BUILTINS = {"set": set, "frozenset": frozenset, "range": _range, "xrange": _range, "list": _empty, "int": _empty}
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): dict,
    ("collections", "Counter"): dict,
    ("collections", "defaultdict"): _empty,
    **{(module, name): call for module in ("builtins", "__builtin__") for name, call in _BUILTINS.items()},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    ("_codecs", "encode"): _latin1,
    ("numpy", "dtype"): _Kind,
    ("numpy", "ndarray"): _Array,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _rebuild for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise UserError(
                f"Expected a pickle of arrays, dicts, lists and numbers, got one that calls {module}.{name}; "
                "do not trust this file, fetch it from elsewhere"
            )
        return _ALLOWED[module, name]

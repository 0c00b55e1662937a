"""Reading pickled arrays of unknown origin: nothing but arrays, dicts, lists, strings and numbers may be built.

A pickle is a program; what it may call is decided in `find_class`. Here that is what numpy needs to rebuild an
array, under the module names of numpy 1 and 2, for pickles written by Python 2 and 3.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from metakm.errors import UserError


def read_pickle(path: Path) -> Any:
    """Unpickle plain data.

    Raises UserError, which names the file, if the pickle asks for anything else or is damaged.
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


def _rebuild(kind: type, shape: tuple[int, ...], typecode: bytes | str) -> Any:  # noqa: ARG001
    """Stand in for numpy's `_reconstruct`: an empty array, which the pickle then fills."""
    return np.ndarray.__new__(np.ndarray, (0,), np.int8)


def _from_buffer(buffer: bytes, dtype: Any, shape: tuple[int, ...], order: str) -> Any:
    """Stand in for numpy's `_frombuffer`, by which protocol 5 writes arrays."""
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order="F" if order == "F" else "C")


_ALLOWED = {
    ("_codecs", "encode"): _latin1,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
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

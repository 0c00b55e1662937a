"""A further member of peft's closed enumeration of methods."""

from __future__ import annotations

import pickle
from typing import Any

from peft import __version__
from peft.utils import PeftType


def add_peft_type(name: str) -> PeftType:
    """`PeftType` with a member `name` whose value is its name, as peft's own; found again if it is there already.

    Raises:
        ImportError: the member does not take in this version of peft or Python.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    try:
        _add(PeftType, name)
        _check(name)
    except Exception as problem:
        raise ImportError(
            f"Expected a peft whose methods can be added to (such as 0.21), got {__version__} ({problem!r}); install "
            "that version, or use metakm.modulation without peft"
        ) from problem
    return PeftType[name]


def _add(enumeration: Any, name: str) -> None:
    member = str.__new__(enumeration, name)
    member._name_, member._value_, member.__objclass__ = name, name, enumeration
    member._sort_order_ = len(enumeration._member_names_)
    enumeration._member_names_.append(name)
    enumeration._member_map_[name] = member
    enumeration._value2member_map_[name] = member
    known = getattr(enumeration, "_hashable_values_", None)  # Python 3.13
    if known is not None:
        known.append(name)
    type.__setattr__(enumeration, name, member)  # the enumeration's own refuses


def _check(name: str) -> None:
    """All that peft does with a member."""
    member = PeftType(name)
    assert member is PeftType[name] is getattr(PeftType, name) is list(PeftType)[-1]
    assert (member, member.name, member.value, hash(member)) == (name, name, name, hash(name))
    assert pickle.loads(pickle.dumps(member)) is member

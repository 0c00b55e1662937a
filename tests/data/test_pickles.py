"""What a pickle may build: nothing that runs, nothing whose memory it describes itself."""

import collections
import contextlib
import pickle
import pickletools
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metakm.data.pickles import read_pickle
from metakm.errors import UserError

ARRAY = np.arange(24, dtype=">i2").reshape(2, 3, 4)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("array", [ARRAY, np.asfortranarray(ARRAY), ARRAY.astype(np.float32), ARRAY[0] > 3])
def test_arrays_come_back_as_they_were(tmp_path: Path, protocol: int, array: np.ndarray) -> None:
    found = read_pickle(written(tmp_path / "a.pkl", pickle.dumps({"a": array}, protocol)))
    assert np.array_equal(np.asarray(found["a"]), array)
    assert np.asarray(found["a"]).dtype == array.dtype


class Call:
    """Pickles as a call, and a state to set on what it returns."""

    def __init__(self, call: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (call, arguments) if state is None else (call, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


def forged_objects() -> Call:
    """An array that calls its 8 bytes an object pointer: its type is 'object', its flags say 'plain numbers'."""
    kind = Call(np.dtype, "O8", False, True, state=(3, "|", None, None, None, -1, -1, 0))
    return Call(np.ndarray, (0,), state=(1, (1,), kind, False, b"\x10" * 8))


def forged_flags() -> Call:
    """An array of bytes whose flags say that each element is a reference to be released."""
    kind = Call(np.dtype, "u1", False, True, state=(3, "|", None, None, None, -1, -1, 63))
    return Call(np.ndarray, (0,), state=(1, (8,), kind, False, b"\x10" * 8))


FORGED = {
    "objects": forged_objects(),
    "structure": Call(np.dtype, [("a", "O")]),
    "too short": Call(np.ndarray, (0,), state=(1, (10**9,), np.dtype("u1"), False, b"\0")),
    "negative": Call(np.ndarray, (0,), state=(1, (-4, -2), np.dtype("u1"), False, b"\0" * 7)),
    "no bytes": Call(np.ndarray, (0,), state=(1, (1,), np.dtype("u1"), False, [1])),
    "no type": Call(np.ndarray, (0,), state=(1, (1,), "u1", False, b"\0")),
    "real objects": np.array([{}, []], dtype=object),
    "complex": np.zeros(2, complex),
    "records": np.zeros(2, [("x", "i4")]),
}


@pytest.mark.parametrize("name", FORGED)
@pytest.mark.parametrize("protocol", [2, 5])
def test_an_array_that_is_not_of_plain_numbers_is_refused(tmp_path: Path, name: str, protocol: int) -> None:
    path = written(tmp_path / "forged.pkl", pickle.dumps(FORGED[name], protocol))
    with pytest.raises(UserError, match=r"forged\.pkl"):
        read_pickle(path)


def test_flags_that_a_pickle_forges_are_not_taken_over(tmp_path: Path) -> None:
    path = written(tmp_path / "forged.pkl", pickle.dumps(forged_flags()))
    array = np.asarray(read_pickle(path))
    assert (array.dtype.hasobject, array.dtype.flags, array.tolist()) == (False, 0, [16] * 8)


EVIL = {
    "a command": Call(subprocess.check_call, ["touch", "MARK"]),
    "code": Call(exec, "open('MARK', 'w')"),
    "an attribute": Call(getattr, [], "clear"),
    "a module's own loader": Call(pickle.loads, b"N."),
    "numpy's loader": Call(np.load, "MARK"),
    "a class of this file": Call(Call, 1),
    "a path": Path("MARK"),
}


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("protocol", [2, 5])
def test_what_calls_anything_else_is_refused_unrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "evil.pkl", pickle.dumps([1, EVIL[name]], protocol))
    with pytest.raises(UserError, match=r"got one that calls .*; do not trust this file"):
        read_pickle(path)
    assert [p.name for p in tmp_path.iterdir()] == ["evil.pkl"]


WHOLE = pickle.dumps({"image_data": ARRAY, "class_dict": {"a": [0, 1]}}, 4)


# Opcodes by which a few bytes may ask CPython for gigabytes of memo; they deny service, they do not run anything.
DEAR = {"LONG_BINPUT", "LONG_BINGET"}
CODES = sorted(ord(opcode.code) for opcode in pickletools.opcodes if opcode.name not in DEAR)


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(WHOLE) - 1), st.sampled_from(CODES) | st.integers(0, 127)), max_size=4
    ),
    length=st.integers(1, len(WHOLE)),
)
def test_a_damaged_pickle_gives_data_or_a_user_error(tmp_path_factory, changes, length) -> None:  # type: ignore[no-untyped-def]
    damaged = bytearray(WHOLE[:length])
    for position, value in changes:
        damaged[position % length] = value
    path = written(tmp_path_factory.getbasetemp() / "damaged.pkl", bytes(damaged))
    with contextlib.suppress(UserError):
        read_pickle(path)


PLAIN = {
    "int64": np.int64(3),
    "bool": np.bool_(True),
    "float32": np.float32(0.5),
    "str": np.str_("\u00e4b"),
    "bytes": np.bytes_(b"ab"),
    "ordered": collections.OrderedDict(a=1, b=[2]),
    "counter": collections.Counter("aab"),
    "set": {1, 2},
    "frozenset": frozenset({1, 2}),
    "range": range(2, 9, 3),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", PLAIN)
def test_scalars_and_containers_of_plain_data_come_back_as_pythons(tmp_path: Path, name: str, protocol: int) -> None:
    found = read_pickle(written(tmp_path / "a.pkl", pickle.dumps({"a": [PLAIN[name]]}, protocol)))["a"][0]
    assert found == PLAIN[name]
    assert not isinstance(found, np.generic)


@pytest.mark.parametrize("protocol", range(6))
def test_a_defaultdict_comes_back_as_a_dict(tmp_path: Path, protocol: int) -> None:
    rows = collections.defaultdict(list, a=[1], b=[2, 3])
    found = read_pickle(written(tmp_path / "a.pkl", pickle.dumps(rows, protocol)))
    assert (type(found), found) == (dict, {"a": [1], "b": [2, 3]})


@pytest.mark.parametrize("protocol", [2, 5])
def test_an_array_of_text_comes_back(tmp_path: Path, protocol: int) -> None:
    names = np.array(["a", "bcd"])
    found = read_pickle(written(tmp_path / "a.pkl", pickle.dumps(names, protocol)))
    assert np.asarray(found).tolist() == ["a", "bcd"]


def test_a_range_does_not_ask_for_more_memory_than_there_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Expected at most"):
        read_pickle(written(tmp_path / "a.pkl", pickle.dumps(range(10**9))))


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_scalar_of_objects_is_refused(tmp_path: Path, protocol: int) -> None:
    scalar = np.float64(0).__reduce__()[0]
    path = written(tmp_path / "forged.pkl", pickle.dumps(Call(scalar, np.dtype("O"), b"\x10" * 8), protocol))
    with pytest.raises(UserError, match=r"forged\.pkl"):
        read_pickle(path)

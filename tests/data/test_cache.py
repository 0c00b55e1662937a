import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from metakm.data import EpisodeSampler, FewShotDataset, load_dataset
from metakm.data import cache as module
from metakm.data.cache import CachePlan, Entry, cache_folder, cached
from metakm.errors import UserError

CLASSES = {"train": [("a", 2), ("b", 3)], "val": [("c", 1)], "test": [("d", 1)]}
IMAGES = np.arange(5 * 2 * 3 * 3, dtype=np.uint8).reshape(5, 2, 3, 3)
ENTRY = Entry("made", "train", rotations=True, fingerprint="f00d")


class Decoder:
    """A plan that counts how often it was carried out."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self) -> CachePlan:
        return CachePlan(CLASSES, (2, 3, 3), self.arrays)

    def arrays(self) -> Iterator[np.ndarray]:
        self.runs += 1
        yield IMAGES[:2]
        yield IMAGES[2:]


def check(found: FewShotDataset) -> None:
    assert np.array_equal(found.images, IMAGES)
    assert found.class_names == ("a", "b")
    assert found.offsets.tolist() == [0, 2, 5]
    assert (found.name, found.split, found.rotations) == ("made", "train", True)


def test_a_split_is_decoded_once_and_then_mapped_read_only(cache: Path) -> None:
    decoder = Decoder()
    first, second = cached(ENTRY, decoder), cached(ENTRY, decoder)
    check(first)
    check(second)
    assert decoder.runs == 1
    assert first.split_hash == second.split_hash
    assert isinstance(second.images, np.memmap)
    assert not second.images.flags.writeable
    assert sorted(p.name for p in cache.rglob("*") if p.is_file()) == [
        "made-train-f00d.json",
        "made-train-f00d.npy",
    ]


def test_the_whole_file_is_read_again_only_after_a_change_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    read, whole = [], module._sha256
    monkeypatch.setattr(module, "_sha256", lambda path: (read.append(path), whole(path))[1])
    cached(ENTRY, Decoder())
    check(cached(ENTRY, Decoder()))
    assert not read
    os.utime(ENTRY.path, ns=(1, 1))
    check(cached(ENTRY, Decoder()))
    check(cached(ENTRY, Decoder()))
    assert read == [ENTRY.path]


def test_a_sidecar_of_before_the_last_check_was_noted_is_read() -> None:
    cached(ENTRY, Decoder())
    side = ENTRY.path.with_suffix(".json")
    side.write_text(json.dumps({k: v for k, v in json.loads(side.read_text()).items() if k != "checked"}))
    decoder = Decoder()
    check(cached(ENTRY, decoder))
    assert decoder.runs == 0
    assert "checked" in json.loads(side.read_text())


def test_episodes_are_drawn_from_the_map_without_a_copy_of_it() -> None:
    dataset = cached(ENTRY, Decoder())
    assert np.shares_memory(EpisodeSampler(dataset, 2, 1, 1)._images, dataset.images)


class Together(Decoder):
    """A plan that decodes the test split along."""

    def __call__(self) -> CachePlan:
        return CachePlan(CLASSES, (2, 3, 3), self.arrays, also=("test",))

    def arrays(self) -> Iterator[np.ndarray]:
        yield from super().arrays()
        yield IMAGES[4:]


def test_a_split_decoded_along_is_kept_too() -> None:
    decoder = Together()
    check(cached(ENTRY, decoder))
    found = cached(replace(ENTRY, split="test"), decoder)
    assert decoder.runs == 1
    assert np.array_equal(found.images, IMAGES[4:])
    assert (found.split, found.class_names) == ("test", ("d",))


def test_without_a_cache_only_the_split_asked_for_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("METAKM_CACHE", str(tmp_path / "file"))
    check(cached(ENTRY, Together()))


def test_another_fingerprint_is_decoded_anew() -> None:
    decoder = Decoder()
    cached(ENTRY, decoder)
    cached(Entry("made", "train", rotations=True, fingerprint="beef"), decoder)
    assert decoder.runs == 2


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(1, 1))  # a clock may be too coarse to tell two writes apart


def edit(**changes: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        side = path.with_suffix(".json")
        side.write_text(json.dumps({**json.loads(side.read_text()), **changes}))

    return change


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda path: path.write_bytes(path.read_bytes()[:-7]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: path.with_suffix(".json").unlink(),
        lambda path: path.with_suffix(".json").write_text('{"format": 1'),
        lambda path: path.with_suffix(".json").write_text("[]"),
        lambda path: path.with_suffix(".json").write_bytes(b"\xff\xfe"),
        edit(format=0),
        edit(sha256="0" * 64),
        edit(classes=[["a", 2]]),
        edit(classes=7),
    ],
)
def test_a_damaged_part_is_rebuilt_without_a_word_to_the_user(
    damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    decoder = Decoder()
    cached(ENTRY, decoder)
    damage(ENTRY.path)
    with caplog.at_level(logging.WARNING):
        check(cached(ENTRY, decoder))
    assert decoder.runs == 2
    assert not caplog.records
    check(cached(ENTRY, decoder))
    assert decoder.runs == 2


def test_damage_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    cached(ENTRY, Decoder())
    flip(ENTRY.path)
    with caplog.at_level(logging.INFO):
        cached(ENTRY, Decoder())
    assert "made-train-f00d.npy is damaged" in caplog.text


def test_an_unusable_cache_folder_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("METAKM_CACHE", str(tmp_path / "file"))
    check(cached(ENTRY, Decoder()))
    assert "cannot be kept" in caplog.text
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_full_disk_is_done_without_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    check(cached(ENTRY, Decoder()))
    assert not [p for p in cache.rglob("*") if p.is_file()]


def test_an_error_of_decoding_leaves_nothing(cache: Path) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield IMAGES[:2]
        raise UserError("Expected an image")

    with pytest.raises(UserError, match="Expected an image"):
        cached(ENTRY, lambda: CachePlan(CLASSES, (2, 3, 3), broken))
    assert not [p for p in cache.rglob("*") if p.is_file()]


def test_the_folder_is_metakm_cache_or_the_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAKM_CACHE", "~/there")
    assert cache_folder() == Path.home() / "there"
    monkeypatch.delenv("METAKM_CACHE")
    assert cache_folder().name == "metakm"


def test_a_user_without_a_home_is_told_to_set_metakm_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", nobody)
    for name in ("HOME", "METAKM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="set METAKM_CACHE to a folder"):
        load_dataset("glyphs")


def test_a_program_without_standard_error_decodes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    assert load_dataset("glyphs").n_classes == 800

"""Decoded splits on disk: a uint8 `.npy` and a JSON sidecar that pins its content.

A pair that is missing, damaged or in another format is decoded again; if the cache cannot be written, it is not used.
The checksum is recomputed only if the size or time of the `.npy` has changed since the last check, so that later uses
of a large split read only the images that they draw.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import operator
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import platformdirs
from tqdm import tqdm

from metakm.data.dataset import FewShotDataset, offsets_of
from metakm.data.splits import Classes, split_hash
from metakm.errors import UserError
from metakm.io.files import atomic_write, expanded, write_text

FORMAT = 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachePlan:
    """What decoding one split of a dataset will produce.

    classes: the classes of all three splits; image_shape: (C, H, W);
    arrays: starts decoding; yields one uint8 `[count, C, H, W]` per class of the split, in the order of `classes`.
    also: further splits, whose arrays follow, because they are cheaper to decode now than later.
    """

    classes: Mapping[str, Classes]
    image_shape: tuple[int, int, int]
    arrays: Callable[[], Iterator[npt.NDArray[np.uint8]]]
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A request to the cache: a split of a dataset, made from sources with this fingerprint."""

    name: str
    split: str
    rotations: bool
    fingerprint: str

    @property
    def path(self) -> Path:
        """The `.npy`; its `.json` sidecar is next to it."""
        return cache_folder() / "arrays" / f"{self.name}-{self.split}-{self.fingerprint}.npy"


def cache_folder() -> Path:
    """METAKM_CACHE, or the platform's cache folder of the user.

    Raises:
        UserError: there is neither, as for a user without a home in a container.
    """
    chosen = os.environ.get("METAKM_CACHE")
    if chosen:
        return expanded(chosen, "METAKM_CACHE")
    try:
        return platformdirs.user_cache_path("metakm").expanduser()  # older releases leave ~ in it
    except RuntimeError as error:
        raise UserError(
            "Expected METAKM_CACHE, or a home folder to keep decoded data in, got neither; set METAKM_CACHE to a folder"
        ) from error


def cached(entry: Entry, plan: Callable[[], CachePlan]) -> FewShotDataset:
    """Load a split from the cache, or decode it and store it there. `plan` is called only to decode.

    The images are a read-only memory map; if the cache cannot be written, an array in memory.
    """
    try:
        return _load(entry)
    except FileNotFoundError:
        _log.debug("%s is not there yet; decoding", entry.path)
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError, UserError) as error:
        _log.info("%s is damaged (%s); decoding again", entry.path, error)
    todo = plan()
    try:
        _store(entry, todo)
        return _load(entry)
    except (OSError, _DamagedError) as error:
        _log.warning("%s cannot be kept (%s); decoding to memory", entry.path, error)
    return _in_memory(entry, todo)


class _DamagedError(ValueError):
    """The bytes on disk are not those that were written."""


def _load(entry: Entry) -> FewShotDataset:
    side = json.loads(entry.path.with_suffix(".json").read_text(encoding="utf-8"))
    if side["format"] != FORMAT:
        raise _DamagedError(f"Expected format {FORMAT}, got {side['format']}")
    stamp = _stamp(entry.path)
    if side.get("checked") != [side["sha256"], *stamp]:
        if (checksum := _sha256(entry.path)) != side["sha256"]:
            raise _DamagedError(f"Expected the checksum of the sidecar, {side['sha256']}, got {checksum}")
        with contextlib.suppress(OSError):  # a read-only cache is checked every time
            _write_side(entry, {**side, "checked": [side["sha256"], *stamp]})
    images = np.load(entry.path, mmap_mode="r", allow_pickle=False)
    classes = [(str(name), operator.index(count)) for name, count in side["classes"]]
    return _dataset(entry, images, classes, str(side["split_hash"]))


def _store(entry: Entry, plan: CachePlan) -> None:
    """Decode and write the split, and the further splits of its plan."""
    arrays = plan.arrays()
    for split in (entry.split, *plan.also):
        _store_split(replace(entry, split=split), plan, arrays)


def _store_split(entry: Entry, plan: CachePlan, arrays: Iterator[npt.NDArray[np.uint8]]) -> None:
    digest = hashlib.sha256()
    with atomic_write(entry.path) as file:
        out = _Hashing(file, digest)
        header = {"descr": "|u1", "fortran_order": False, "shape": _shape(entry, plan)}
        np.lib.format.write_array_header_1_0(out, header)  # type: ignore[no-untyped-call, unused-ignore]
        for array in _progress(entry, plan, arrays):
            out.write(array.tobytes())
    checksum = digest.hexdigest()
    side = {
        "format": FORMAT,
        "sha256": checksum,
        "checked": [checksum, *_stamp(entry.path)],
        "classes": plan.classes[entry.split],
        "split_hash": split_hash(plan.classes),
    }
    _write_side(entry, side)


def _write_side(entry: Entry, side: Mapping[str, Any]) -> None:
    write_text(entry.path.with_suffix(".json"), json.dumps(side))


def _stamp(path: Path) -> tuple[int, int]:
    """Size and modification time in ns."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _in_memory(entry: Entry, plan: CachePlan) -> FewShotDataset:
    images = np.empty(_shape(entry, plan), dtype=np.uint8)
    start = 0
    for array in _progress(entry, plan, plan.arrays()):
        images[start : start + len(array)] = array
        start += len(array)
    return _dataset(entry, images, plan.classes[entry.split], split_hash(plan.classes))


def _dataset(entry: Entry, images: npt.NDArray[np.uint8], classes: Classes, pinned: str) -> FewShotDataset:
    return FewShotDataset(
        name=entry.name,
        split=entry.split,
        images=images,
        class_names=tuple(name for name, _ in classes),
        offsets=offsets_of([count for _, count in classes]),
        rotations=entry.rotations,
        split_hash=pinned,
    )


def _shape(entry: Entry, plan: CachePlan) -> tuple[int, int, int, int]:
    return (sum(count for _, count in plan.classes[entry.split]), *plan.image_shape)


def _progress(
    entry: Entry, plan: CachePlan, arrays: Iterator[npt.NDArray[np.uint8]]
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the arrays of the entry's split, with a bar on stderr if that is a terminal."""
    with tqdm(
        desc=f"decoding {entry.name} {entry.split}",
        total=_shape(entry, plan)[0],
        unit="image",
        disable=None if sys.stderr is not None else True,
        leave=False,
    ) as bar:
        for array in itertools.islice(arrays, len(plan.classes[entry.split])):
            yield array
            bar.update(len(array))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class _Hashing:
    """A writable file that hashes what is written."""

    def __init__(self, file: IO[bytes], digest: Any) -> None:
        self._file, self._digest = file, digest

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return self._file.write(data)

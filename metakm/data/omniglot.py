"""Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawers each.

Lake, Salakhutdinov, Tenenbaum, "Human-level concept learning through probabilistic program induction", Science 2015.
Images are resized to 28x28 with LANCZOS and inverted: ink is 255 on 0. (MAML's own script asks Pillow for LANCZOS on
1-bit images, where Pillow takes the nearest pixel; here they are converted to grey first.)

The split is fixed: all characters in the order of a constant hash, 1,100 train, 100 val, 423 test. MAML splits at
random as well, 1,200 / 423. Classes are rotated by multiples of 90 degrees in all three splits, as in MAML's code,
which does so at meta-test, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from metakm.data.archives import Member, Source, ZipSource, find_source, fingerprint, missing
from metakm.data.cache import CachePlan, Entry, cached
from metakm.data.dataset import FewShotDataset
from metakm.data.decode import decode_classes
from metakm.data.download import download
from metakm.data.registry import register_dataset
from metakm.errors import UserError

VERSION = "omniglot 1"  # raise it when decoding changes
SPLIT_TAG = "metakm omniglot split 1"  # never changes
SIDE = 28
DRAWERS = 20
SIZES = {"train": 1100, "val": 100, "test": 423}
LARGEST_ZIP = 100_000_000  # bytes; the official ones have less than 10 MB
PARTS = ("images_background", "images_evaluation")
_MEMBER = re.compile(r"(?:images_background|images_evaluation)/([^/]+/character\d+)/[^/.][^/]*\.png")


@register_dataset("omniglot", title="Omniglot", family="characters", ways=20)
def load_omniglot(split: str, roots: Sequence[Path]) -> FewShotDataset:
    """Load a split; what is in none of the roots is downloaded into the first one.

    Looks in each root for `omniglot/`, the root itself and torchvision's `omniglot-py/`, and there for the two
    official zips or the folders extracted from them.

    Raises:
        UserError: the data are missing and cannot be downloaded, damaged or incomplete.
    """
    folders = [root / sub for root in roots for sub in ("omniglot", ".", "omniglot-py")]
    sources = [_find(part, folders) or _download(part, folders, roots[0]) for part in PARTS]
    entry = Entry("omniglot", split, rotations=True, fingerprint=fingerprint(VERSION, sources))
    return cached(entry, lambda: _plan(split, sources))


def split_characters(names: Sequence[str]) -> dict[str, list[str]]:
    """Divide character names (`<alphabet>/characterNN`) among the splits; each split is sorted by name."""
    order = sorted(names, key=lambda name: hashlib.sha256(f"{SPLIT_TAG}:{name}".encode()).digest())
    divided, start = {}, 0
    for split, size in SIZES.items():
        divided[split] = sorted(order[start : start + size])
        start += size
    return divided


def _find(part: str, folders: Sequence[Path]) -> Source | None:
    return find_source(folders, (f"{part}.zip", part))


def _plan(split: str, sources: Sequence[Source]) -> CachePlan:
    members = _members(sources)
    whole = sum(len(drawn) == DRAWERS for drawn in members.values())
    if whole != sum(SIZES.values()) or len(members) != whole:
        raise UserError(
            f"Expected {sum(SIZES.values())} characters with {DRAWERS} images each, got {len(members)} "
            f"characters, {whole} of them whole, in {' and '.join(str(s.path) for s in sources)}; "
            "fetch Omniglot again"
        )
    divided = split_characters(list(members))
    classes = {key: [(name, DRAWERS) for name in names] for key, names in divided.items()}
    wanted = [members[name] for name in divided[split]]
    return CachePlan(classes, (1, SIDE, SIDE), lambda: _inverted(wanted))


def _members(sources: Sequence[Source]) -> dict[str, list[Member]]:
    """Collect the images of every character, in the order of their file names (that of the drawers)."""
    found: dict[str, list[Member]] = {}
    for source in sources:
        for name in source.names():
            if match := _MEMBER.fullmatch(name):
                found.setdefault(match[1], []).append(Member(source, name))
    return found


def _inverted(classes: Sequence[Sequence[Member]]) -> Iterator[npt.NDArray[np.uint8]]:
    return (255 - array for array in decode_classes(classes, "L", SIDE))


def _download(part: str, folders: Sequence[Path], root: Path) -> Source:
    """Download one official zip into torchvision's folder under `root`. It is read directly, never extracted."""
    from torchvision.datasets import Omniglot  # imported late: slow, and rarely needed

    path = root / Omniglot.folder / f"{part}.zip"
    new = [folder for folder in (path.parent, root) if not folder.exists()]
    try:
        download(f"{Omniglot.download_url_prefix}/{part}.zip", path, Omniglot.zips_md5[part], LARGEST_ZIP)
    except OSError as error:
        for folder in new:  # a failed download leaves no empty folders
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise missing(
            f"{part}.zip or {part}/",
            folders,
            f"its download failed ({error}); fetch {part}.zip from https://github.com/brendenlake/omniglot",
        ) from error
    return ZipSource(path)

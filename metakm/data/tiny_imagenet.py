"""Tiny ImageNet (CS231n) as a few-shot dataset: 100 of its 200 classes, 64 / 16 / 20, 550 photographs each.

`tiny-imagenet-split.csv` fixes which class is meta-train, meta-val or meta-test; classes that are also in mini-ImageNet
(Ravi & Larochelle) keep their role. The 500 training and 50 validation images of a class are pooled. Images are resized
from 64x64 to 84x84, mini-ImageNet's size, with LANCZOS; results on it are not mini-ImageNet results.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from metakm.data.archives import Member, Source, fingerprint, require_source
from metakm.data.cache import CachePlan, Entry, cached
from metakm.data.dataset import FewShotDataset
from metakm.data.decode import decode_classes
from metakm.data.registry import register_dataset
from metakm.data.splits import SPLITS
from metakm.errors import UserError

VERSION = "tiny-imagenet 1"  # raise it when decoding changes
SIDE = 84
PER_CLASS = 550
SPLIT_FILE = Path(__file__).with_name("tiny-imagenet-split.csv")
NAMES = ("tiny-imagenet-200.zip", "tiny-imagenet-100.zip", "tiny-imagenet-200")
_ANNOTATIONS = "tiny-imagenet-200/val/val_annotations.txt"
_TRAIN = re.compile(r"tiny-imagenet-200/train/([^/]+)/images/[^/.][^/]*\.JPEG")


@register_dataset("tiny-imagenet", title="tiny-ImageNet", family="photographs", ways=5)
def load_tiny_imagenet(split: str, roots: Sequence[Path]) -> FewShotDataset:
    """Load a split; only its own images are decoded (about 750 MB of cache for `train`).

    Looks in each root for `tiny-imagenet/` and the root itself, and there for `tiny-imagenet-200.zip`,
    `tiny-imagenet-100.zip` or the extracted folder `tiny-imagenet-200/`.

    Raises:
        UserError: the data are missing, damaged or incomplete.
    """
    source = find_tiny_imagenet(roots)
    entry = Entry("tiny-imagenet", split, rotations=False, fingerprint=fingerprint(VERSION, [source]))
    return cached(entry, lambda: _plan(split, source))


def find_tiny_imagenet(roots: Sequence[Path]) -> Source:
    """The archive or folder of the data; raises UserError if there is none."""
    remedy = "fetch http://cs231n.stanford.edu/tiny-imagenet-200.zip and set METAKM_DATA to its folder"
    return require_source(roots, "tiny-imagenet", NAMES, remedy)


def split_classes() -> dict[str, list[str]]:
    """Read which class (WordNet id) belongs to which split; each split is sorted."""
    with SPLIT_FILE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {split: sorted(row["wnid"] for row in rows if row["split"] == split) for split in SPLITS}


def _plan(split: str, source: Source) -> CachePlan:
    divided, members = split_classes(), members_by_class(source)
    for name in (name for names in divided.values() for name in names):
        if len(members.get(name, ())) != PER_CLASS:
            raise UserError(
                f"Expected {PER_CLASS} images of class {name}, got {len(members.get(name, ()))} "
                f"in {source.path}; fetch Tiny ImageNet again"
            )
    classes = {key: [(name, PER_CLASS) for name in names] for key, names in divided.items()}
    wanted = [members[name] for name in divided[split]]
    return CachePlan(classes, (3, SIDE, SIDE), lambda: decode_classes(wanted, "RGB", SIDE))


def members_by_class(source: Source) -> dict[str, list[Member]]:
    """Collect the images of every class: training images by name, then validation images by name."""
    names = source.names()
    found: dict[str, list[Member]] = {}
    for name in names:
        if match := _TRAIN.fullmatch(name):
            found.setdefault(match[1], []).append(Member(source, name))
    if _ANNOTATIONS not in names:
        raise UserError(f"Expected {_ANNOTATIONS} in {source.path}, got none; fetch Tiny ImageNet again")
    with source.reader() as read:
        lines = read(_ANNOTATIONS).decode("utf-8-sig", errors="replace").splitlines()
    present = set(names)
    for file, label in sorted(line.split("\t")[:2] for line in lines if "\t" in line):
        name = f"tiny-imagenet-200/val/images/{file}"
        if name in present:
            found.setdefault(label, []).append(Member(source, name))
    return found

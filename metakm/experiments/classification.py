"""Images for supervised training: the same classes in a training, a validation and a test part.

Each part is a `FewShotDataset`: images sorted by class. If the source has no validation or test part, one is
set aside by a rule that depends only on class and image number: it is the same for every seed, method and machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from metakm.data.archives import FolderSource, Member, Source, fingerprint, require_source, unwrap_folder
from metakm.data.cache import CachePlan, Entry, cached
from metakm.data.dataset import FewShotDataset, offsets_of
from metakm.data.decode import decode_classes
from metakm.data.folder import is_image
from metakm.data.rng import raw_words, stream_key
from metakm.data.splits import SPLITS
from metakm.data.tiny_imagenet import find_tiny_imagenet, members_by_class, split_classes
from metakm.errors import UserError
from metakm.io.files import expanded

VERSION = "classification 1"  # raise it when decoding changes
VALIDATION_SHARE = 0.1  # of the training images of a class
TEST_SHARE = 0.2  # of all images of a class

Members = Mapping[str, Sequence[Member]]
"""The image files of each class."""


@dataclass(frozen=True)
class Classification:
    """The three parts of a classification problem; the classes are the same in each."""

    train: FewShotDataset
    val: FewShotDataset
    test: FewShotDataset

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of the labels."""
        return self.train.class_names


def labels_of(part: FewShotDataset) -> npt.NDArray[np.int64]:
    """The label of every image of a part, `[M]`."""
    return np.repeat(np.arange(part.n_classes), part.counts)


def first_per_class(part: FewShotDataset, per_class: int) -> FewShotDataset:
    """The first `per_class` images of each class, or all if it has fewer; `split_hash` stays that of the whole part."""
    counts = np.minimum(part.counts, per_class)
    rows = np.concatenate([np.arange(o, o + n) for o, n in zip(part.offsets[:-1], counts, strict=True)])
    return FewShotDataset(
        name=part.name,
        split=part.split,
        images=part.images[rows],
        class_names=part.class_names,
        offsets=offsets_of(counts),
        rotations=False,
        split_hash=part.split_hash,
    )


def load_cifar10(side: int, roots: Sequence[Path]) -> Classification:
    """CIFAR-10 from image files: 45,000 training, 5,000 validation and 10,000 test images of 32x32, resized to `side`.

    Looks in each root for `cifar10/` and the root itself, and there for `cifar10-jpeg.tar.xz`, or a folder `cifar10`
    or `cifar10-jpeg`, with `{train,test}/<class>/` in it.

    Raises:
        UserError: the data are missing or damaged.
    """
    remedy = "fetch CIFAR-10, write its images to {train,test}/<class>/ in one of them, and set METAKM_DATA"
    source = require_source(roots, "cifar10", ("cifar10-jpeg.tar.xz", "cifar10-jpeg", "cifar10"), remedy)
    return load_images("cifar10", source, side)


def load_image_folder(path: str | Path, side: int) -> Classification:
    """The user's image folder: `{train,test}/<class>/` (with or without `val/<class>/`), or just `<class>/`.

    Raises:
        UserError: there is no such folder, or the images in it do not make a classification problem.
    """
    path = expanded(path, "the folder of images")
    if not path.is_dir():
        raise UserError(f"Expected a folder of images, got {path}; give a folder with one folder of images per class")
    return load_images(path.resolve().name, FolderSource(unwrap_folder(path.resolve())), side, upright=True)


def load_images(name: str, source: Source, side: int, upright: bool = False) -> Classification:
    """Decode the images of a source, or load them from the cache; `[M, 3, side, side]`."""
    return load_members(name, lambda: split_members(source), fingerprint(VERSION, [source]), side, upright)


def load_members(
    name: str, members: Callable[[], Mapping[str, Members]], stamp: str, side: int, upright: bool = False
) -> Classification:
    """Decode the files that `members` finds for each part, or load them from the cache.

    Args:
        members: only called to decode.
        stamp: fingerprint of what the files are made from.
        upright: follow a camera's EXIF orientation.
    """

    def plan(split: str) -> CachePlan:
        found = members()
        classes = {s: [(c, len(m)) for c, m in parts.items()] for s, parts in found.items()}
        wanted = list(found[split].values())
        return CachePlan(classes, (3, side, side), lambda: decode_classes(wanted, "RGB", side, upright))

    def part(split: str) -> FewShotDataset:
        return cached(Entry(f"{name}-{side}px", split, rotations=False, fingerprint=stamp), lambda: plan(split))

    return Classification(train=part("train"), val=part("val"), test=part("test"))


def load_tiny_imagenet_classes(count: int, side: int, roots: Sequence[Path]) -> Classification:
    """The first `count` meta-test classes of Tiny ImageNet: 396 training, 44 validation and 110 test images of each.

    Raises:
        UserError: the data are missing or damaged, or there are fewer classes.
    """
    wanted = split_classes()["test"]
    if not 2 <= count <= len(wanted):
        raise UserError(f"Expected 2 to {len(wanted)} classes of tiny-imagenet, got {count}; choose another --classes")
    source = find_tiny_imagenet(roots)

    def members() -> Mapping[str, Members]:
        found = members_by_class(source)
        return complete_parts({"": {name: found.get(name, []) for name in wanted[:count]}}, source.path)

    return load_members(f"tiny-imagenet-{count}", members, fingerprint(VERSION, [source]), side)


def split_members(source: Source) -> dict[str, Members]:
    """The files of each part and class, both sorted by name.

    Images may be at any depth below their class's folder, and a whole archive may be in one folder.

    Raises:
        UserError: no images, images outside of a class's folder, fewer than two classes, or parts with different
            classes.
    """
    found: dict[str, dict[str, list[Member]]] = {}
    for name, inside in _inside(source).items():
        part = inside[0] if inside[0] in SPLITS else ""
        label, *rest = inside[1:] if part else inside
        if not rest:
            raise UserError(f"Expected every image in a class's folder of {source.path}, got {name}; move it into one")
        found.setdefault(part, {}).setdefault(label, []).append(Member(source, name))
    if set(found) not in ({""}, {"train", "test"}, set(SPLITS)):
        parts = ", ".join(part or "<class>" for part in sorted(found)) or "no images"
        raise UserError(
            f"Expected {{train,test}}/<class>/ or <class>/ with images in {source.path}, got {parts}; sort the images "
            "into one folder per class"
        )
    return complete_parts({split: dict(sorted(classes.items())) for split, classes in found.items()}, source.path)


def _inside(source: Source) -> dict[str, tuple[str, ...]]:
    """The images of a source by their names there: the folders from the top, and the file."""
    skip = int(isinstance(source, FolderSource))  # whose names begin with the folder's own
    paths = {name: PurePosixPath(name).parts[skip:] for name in source.names()}
    images = {name: path for name, path in paths.items() if is_image(path)}
    tops = {path[0] if len(path) > 1 else "" for path in images.values()}
    if skip or len(tops) != 1 or tops & {"", *SPLITS}:
        return images
    return {name: path[1:] for name, path in images.items()}


def complete_parts(found: dict[str, dict[str, list[Member]]], where: Path) -> dict[str, Members]:
    """Set aside a test and a validation part if `found` has none; "" is a part that holds everything.

    Raises:
        UserError: fewer than two classes, parts with different classes, or a class with too few images.
    """
    classes = {split: list(members) for split, members in found.items()}
    first = next(iter(classes.values()))
    if len(first) < 2 or any(names != first for names in classes.values()):
        raise UserError(
            f"Expected the same classes, at least two, in every part of {where}, got "
            f"{', '.join(f'{len(names)} in {split or where.name}' for split, names in classes.items())}; complete them"
        )
    if set(found) == set(SPLITS):
        return dict(found)
    known = "" if "" in found else "train"
    parts: dict[str, dict[str, list[Member]]] = {split: {} for split in SPLITS}
    for name, members in found[known].items():
        for split, positions in _parts(name, len(members), with_test=known == "").items():
            parts[split][name] = [members[p] for p in positions]
    return {**parts, **({"test": found["test"]} if "test" in found else {})}


def _parts(name: str, count: int, with_test: bool = True) -> dict[str, npt.NDArray[np.int64]]:
    """The images of a class, of `count`, that go to each part, in ascending order."""
    if count < 10:
        raise UserError(f"Expected at least 10 images of class {name} to divide, got {count}; add images")
    order = np.argsort(raw_words(stream_key(VERSION, name), [0], count)[0], kind="stable")
    n_test = round(TEST_SHARE * count) if with_test else 0
    n_val = round(VALIDATION_SHARE * (count - n_test))
    test, val, train = np.split(order, [n_test, n_test + n_val])
    parts = {"train": np.sort(train), "val": np.sort(val)}
    return {**parts, "test": np.sort(test)} if with_test else parts

"""The paper's transfer datasets in torchvision's layouts, Aircraft, Cars, Flowers, Food (Sec. III-C), and groceries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torchvision

from metakm.data.archives import FolderSource, Member, Source, fingerprint
from metakm.data.flowers import PARTS, find_flowers, list_flowers
from metakm.data.grocery_store import LISTS, find_groceries, list_groceries
from metakm.data.splits import SPLITS
from metakm.errors import UserError
from metakm.experiments.classification import (
    VALIDATION_SHARE,
    VERSION,
    Classification,
    Members,
    complete_parts,
    load_members,
)

OFFICIAL_VERSION = "official parts 1"
FineGrained = Literal["aircraft", "cars", "flowers", "food", "grocery-store"]


class _Kind(NamedTuple):
    """A dataset in torchvision: its class, its name for the training part, its folder."""

    dataset: Any
    train: str
    folder: str


_KINDS: dict[str, _Kind] = {
    "aircraft": _Kind(torchvision.datasets.FGVCAircraft, "trainval", "fgvc-aircraft-2013b"),
    "cars": _Kind(torchvision.datasets.StanfordCars, "train", "stanford_cars"),
    "food": _Kind(torchvision.datasets.Food101, "train", "food-101"),
}


def load_fine_grained(name: FineGrained, side: int, roots: Sequence[Path]) -> Classification:
    """A dataset below one of the roots, with images resized to `side` x `side`.

    Flowers and Grocery Store have an official validation part; for the others one is set aside from the training images
    by a fixed rule. That of Grocery Store lacks some classes: of these it gets the last tenth of the training images,
    which were taken one after another, so that a random tenth would have doubles in training.
    The cache takes 3 side^2 bytes per image: 20 GB for the 101,000 of Food at 256 pixels.

    Raises:
        UserError: the data are missing or damaged.
    """
    own = {"flowers": _flowers, "grocery-store": _groceries}
    source, parts = own[name](roots) if name in own else _through_torchvision(name, roots)

    def members() -> dict[str, Members]:
        return complete_parts(parts(), source.path.parent)

    version = OFFICIAL_VERSION if name in own else VERSION
    return load_members(name, members, fingerprint(version, [source]), side)


Parts = Callable[[], dict[str, dict[str, list[Member]]]]
"""Lists the files of the training and the test part, and of the validation part if there is one, by class."""


def _flowers(roots: Sequence[Path]) -> tuple[Source, Parts]:
    source = find_flowers(roots)
    names = {"trnid": "train", "valid": "val", "tstid": "test"}
    return source, lambda: _by_official_part(
        (f.label - 1, names[PARTS[f.part]], f.member) for f in list_flowers(source)
    )


def _groceries(roots: Sequence[Path]) -> tuple[Source, Parts]:
    source = find_groceries(roots)
    return source, lambda: _by_official_part(
        (g.label, LISTS[g.part].removesuffix(".txt"), g.member) for g in list_groceries(source)
    )


def _by_official_part(images: Iterable[tuple[int, str, Member]]) -> dict[str, dict[str, list[Member]]]:
    """The files of each class by part, from (class, part, file); each class has some in the validation part."""
    listed = sorted(images, key=lambda image: image[0])
    names = dict.fromkeys(f"{label:04d}" for label, _, _ in listed)
    found: dict[str, dict[str, list[Member]]] = {split: {name: [] for name in names} for split in SPLITS}
    for label, split, member in listed:
        found[split][f"{label:04d}"].append(member)
    for name, own in found["val"].items():
        train = found["train"][name]
        if not own:
            last = max(1, round(VALIDATION_SHARE * len(train)))
            found["train"][name], found["val"][name] = train[:-last], train[-last:]
    return found


def _through_torchvision(name: str, roots: Sequence[Path]) -> tuple[Source, Parts]:
    kind = _KINDS[name]
    root = next((r for r in roots if (r / kind.folder).is_dir()), None)
    if root is None:
        places = ", ".join(str(r / kind.folder) for r in roots)
        raise UserError(
            f"Expected the {name} dataset in {places}, got no such folder; with network access, fetch it with "
            f"torchvision.datasets.{kind.dataset.__name__}(<folder>, download=True) and give --data-root <folder>"
        )
    source = FolderSource(root / kind.folder)

    def parts() -> dict[str, dict[str, list[Member]]]:
        names = {"train": kind.train, "test": "test"}
        return {part: _by_class(_files(kind, root, name), source) for part, name in names.items()}

    return source, parts


def _files(kind: _Kind, root: Path, split: str) -> list[tuple[Path, int]]:
    """Image files and labels. From private attributes, as the public interface decodes images."""
    try:
        dataset = kind.dataset(root, split=split)
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"Expected torchvision's {kind.dataset.__name__} in {root}, got: {error}") from error
    if hasattr(dataset, "_samples"):  # StanfordCars
        return [(Path(file), int(label)) for file, label in dataset._samples]
    return [(Path(file), int(label)) for file, label in zip(dataset._image_files, dataset._labels, strict=True)]


def _by_class(files: Sequence[tuple[Path, int]], source: FolderSource) -> dict[str, list[Member]]:
    """The files of each class; a class is named by its number in four digits, so that names sort like numbers."""
    found: dict[str, list[Member]] = {}
    for label, file in sorted((label, file) for file, label in files):
        name = file.relative_to(source.path.parent).as_posix()
        found.setdefault(f"{label:04d}", []).append(Member(source, name))
    return found

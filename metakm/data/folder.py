"""Your own photographs: `train/`, `val/` and `test/`, each with one folder of images per class.

The layout is that of `torchvision.datasets.ImageFolder` within each of the three, but each class is in
only one of them: meta-test classes are unseen classes. Images may be at any depth below their class's folder, which may
be a link to a folder elsewhere. Other files, hidden files and those in hidden folders (see `is_hidden`) are ignored.
Every image is converted to RGB, turned upright by its EXIF orientation, and resized to a square with LANCZOS, without
keeping its proportions (as in mini-ImageNet).

Or one folder of images per class and nothing else, whose classes `--split 64/16/20` divides at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from metakm.data.archives import FolderSource, Member, fingerprint, missing, unwrap_folder
from metakm.data.cache import CachePlan, Entry, cached
from metakm.data.dataset import FewShotDataset
from metakm.data.decode import decode_classes
from metakm.data.hidden import is_hidden
from metakm.data.registry import register_dataset
from metakm.data.splits import SPLITS, check_disjoint, divide
from metakm.errors import UserError

VERSION = "folder 1"  # raise it when decoding changes
SIDE = 84
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def is_image(parts: Sequence[str]) -> bool:
    """Whether a path names an image, and neither it nor one of its folders is hidden."""
    return PurePosixPath(parts[-1]).suffix.lower() in SUFFIXES and not any(map(is_hidden, parts))


@register_dataset("folder", title="your own images", family="photographs", ways=5, resized=True, divided=True)
def load_folder(
    split: str, roots: Sequence[Path], side: int = SIDE, class_split: str | None = None, split_seed: int = 0
) -> FewShotDataset:
    """Load a split; only its own images are decoded, to `[3, side, side]`.

    Takes the first root that has the folders `train`, `val` and `test`; with `class_split`, such as 64/16/20, the first
    that is there, whose classes are divided by `split_seed`. A class is named after its folder.

    Raises:
        UserError: there is no such root; a class is in two splits or has no image; an image cannot be read, which it
            names.
    """
    if class_split is not None:
        return _load_divided(split, roots, side, class_split, split_seed)
    root = next((root for root in roots if all((root / key).is_dir() for key in SPLITS)), None)
    if root is None:
        raise missing(
            "folders train, val and test",
            roots,
            "put a folder of images for each class into each of them and give their parent as --data-root, or give a "
            "folder with a folder for each class and --split, such as 64/16/20",
        )
    sources = {key: FolderSource(unwrap_folder(root / key)) for key in SPLITS}
    stamp = fingerprint(f"{VERSION} {side}", sources.values())
    return cached(Entry("folder", split, rotations=False, fingerprint=stamp), partial(_plan, split, sources, side))


def _load_divided(split: str, roots: Sequence[Path], side: int, class_split: str, seed: int) -> FewShotDataset:
    root = next((root for root in roots if root.is_dir()), None)
    if root is None:
        raise missing("a folder with a folder of images for each class", roots, "give it as --data-root")
    if all((root / key).is_dir() for key in SPLITS):
        raise UserError(f"Expected one folder for each class in {root}, got train, val and test; leave --split out")
    source = FolderSource(unwrap_folder(root))
    stamp = fingerprint(f"{VERSION} {side} {class_split} {seed}", [source])

    def plan() -> CachePlan:
        members = _members(source)
        divided = divide(sorted(members), class_split, seed, source.path)
        classes = {key: [(name, len(members[name])) for name in names] for key, names in divided.items()}
        wanted = [members[name] for name in divided[split]]
        return CachePlan(classes, (3, side, side), lambda: decode_classes(wanted, "RGB", side, upright=True))

    return cached(Entry("folder", split, rotations=False, fingerprint=stamp), plan)


def _plan(split: str, sources: Mapping[str, FolderSource], side: int) -> CachePlan:
    members = {key: _members(source) for key, source in sources.items()}
    check_disjoint(members, sources[split].path.parent, "move its folder to one of them")
    classes = {key: [(name, len(found[name])) for name in sorted(found)] for key, found in members.items()}
    wanted = [members[split][name] for name, _ in classes[split]]
    return CachePlan(classes, (3, side, side), lambda: decode_classes(wanted, "RGB", side, upright=True))


def _members(source: FolderSource) -> dict[str, list[Member]]:
    """The images of each class, by name."""
    found: dict[str, list[Member]] = {
        path.name: [] for path in source.path.iterdir() if path.is_dir() and not is_hidden(path.name)
    }
    for name in source.names():
        _, kind, *inner = PurePosixPath(name).parts
        if inner and kind in found and is_image(inner):
            found[kind].append(Member(source, name))
    empty = sorted(name for name, images in found.items() if not images)
    if empty or not found:
        got = f"none in {', '.join(empty)}" if empty else "no folder"
        raise UserError(
            f"Expected one folder of images for each class in {source.path}, got {got}; images end in "
            f"{', '.join(sorted(SUFFIXES))}"
        )
    return found

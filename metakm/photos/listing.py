"""Folders of photographs: which files belong to which class, and what was left out, and why."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from metakm.data.folder import SUFFIXES
from metakm.data.hidden import is_hidden
from metakm.errors import UserError
from metakm.io.files import expanded

Photo = Path | Image.Image | npt.NDArray[np.uint8]
"""A file, or an image in memory (an array is `[H, W, 3]`)."""
IMAGES = SUFFIXES | {".heic", ".heif", ".jfif", ".jpe", ".mpo", ".avif"}
NONE_OF_THESE = "(none of these)"
"""The answer in place of a class."""
_Photos = TypeVar("_Photos", bound=Sequence[object])


class Skipped(NamedTuple):
    """A file that is not used."""

    path: Path
    reason: str


class PhotoListing(NamedTuple):
    """The photos of each class, in the order of the classes' names; no file has been read."""

    classes: Mapping[str, Sequence[Photo]]
    skipped: list[Skipped]


def list_folder(folder: Path | str) -> PhotoListing:
    """One folder a class, with images at any depth below it.

    Hidden files and folders, and those that systems make (`.DS_Store`, `Thumbs.db`, `.ipynb_checkpoints`), are no
    classes; such files, and files that are no images, are listed as skipped.

    Raises:
        UserError: no such folder, classes that `check_classes` refuses, or a folder of such folders.
    """
    root = expanded(folder, "the folder of photos")
    if not root.is_dir():
        raise UserError(f"Expected a folder with one folder of photos per class, got {root}; check the path")
    classes: dict[str, list[Path]] = {}
    skipped: list[Skipped] = []
    for path in sorted(root.iterdir(), key=lambda each: each.name):
        if is_hidden(path.name):
            skipped.append(Skipped(path, "a hidden or system file"))
        elif path.is_dir():
            classes[path.name] = _images(path, skipped)
        else:
            skipped.append(Skipped(path, "not in a class's folder"))
    _check_layout(root, classes)
    return PhotoListing(check_classes(classes), skipped)


def list_images(paths: Sequence[Path | str]) -> list[Path]:
    """The files that are named, and all images below the folders that are.

    Raises:
        UserError: there are none, or nothing is there that was named.
    """
    given = [expanded(path, "an image's path") for path in paths]
    if given and not any(path.exists() for path in given):
        raise UserError(f"Expected image files, or folders with images, got {given[0]}, which does not exist")
    found: list[Path] = []
    for path in given:
        found += _images(path, []) if path.is_dir() else [path]
    if not found:
        raise UserError("Expected at least one image, got none; name files, or folders with images")
    return found


def normal_form(name: str) -> str:
    """A class's name in Unicode's composed form (NFC): an umlaut has two spellings, and systems differ in theirs."""
    return unicodedata.normalize("NFC", name)


def check_classes(classes: Mapping[str, _Photos]) -> dict[str, _Photos]:
    """The classes by the normal forms of their names, if a classifier can be made of them.

    Raises:
        UserError: fewer than two classes, a class without an image, a name that `predict` needs, names that differ in
            case or Unicode form alone.
    """
    if len(classes) < 2:
        listed = f" ({', '.join(classes)})" if classes else ""
        raise UserError(f"Expected at least two classes to tell apart, got {len(classes)}{listed}; add another")
    folded: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        folded[normal_form(name).lower()].append(name)
    for names in folded.values():
        if len(names) > 1:
            kind = "case" if len({*map(normal_form, names)}) > 1 else "the Unicode form of their letters"
            raise UserError(
                f"Expected class names that differ in more than {kind}, got {' and '.join(names)}; merge or rename them"
            )
    if NONE_OF_THESE in classes:
        raise UserError(f"Expected a class name other than {NONE_OF_THESE!r}, which predict answers; rename it")
    empty = [name for name, images in classes.items() if not images]
    if empty:
        raise UserError(f"Expected an image in each class, got none in {', '.join(map(repr, empty))}; add some")
    return {normal_form(name): images for name, images in classes.items()}


def _check_layout(root: Path, classes: Mapping[str, Sequence[Path]]) -> None:
    if not classes and any(path.suffix.lower() in IMAGES for path in root.iterdir()):
        raise UserError(f"Expected one folder of photos per class in {root}, got photos; sort them into folders")
    nested = {name: {path.relative_to(root / name).parts[0] for path in files} for name, files in classes.items()}
    if classes and all(files and _all_folders(root / name, nested[name]) for name, files in classes.items()):
        first = next(iter(classes))
        raise UserError(
            f"Expected one folder of photos per class in {root}, got folders of folders (such as "
            f"{first}/{min(nested[first])}); name one of {', '.join(list(classes)[:3])} instead"
        )


def _all_folders(parent: Path, names: set[str]) -> bool:
    return len(names) > 1 and all((parent / name).is_dir() for name in names)


def _images(folder: Path, skipped: list[Skipped]) -> list[Path]:
    """All images below a folder; links are followed, but into no folder twice."""
    found, seen, waiting = [], set[Path](), [folder]
    while waiting:
        current = waiting.pop()
        if (real := current.resolve()) in seen:
            continue
        seen.add(real)
        for path in sorted(current.iterdir(), key=lambda each: each.name):
            if is_hidden(path.name):
                skipped.append(Skipped(path, "a hidden or system file"))
            elif path.is_dir():
                waiting.append(path)
            elif path.suffix.lower() not in IMAGES:
                skipped.append(Skipped(path, "not an image by its name"))
            else:
                found.append(path)
    return sorted(found)

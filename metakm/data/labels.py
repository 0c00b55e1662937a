"""Labels as users pass them: one number or one string per image."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from metakm.errors import UserError


def label_array(labels: Sequence[Any] | npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Labels as one array `[M]` of numbers or strings; bytes become text.

    Raises:
        UserError: not one number or string per image, a missing label (None, NaN, NA, masked, blank), or a mixture of
            numbers and strings.
    """
    try:
        marks = np.asarray(labels)
    except ValueError as error:  # rows of different lengths
        raise UserError(f"Expected one label per image, got {error}; pass labels as [M]") from error
    if not len(np.atleast_1d(marks)):
        raise UserError("Expected at least one image with its label, got none")
    if marks.ndim != 1:
        raise UserError(f"Expected one label per image, got labels {list(marks.shape)}; pass labels as [M]")
    mask = np.ma.getmaskarray(labels).tolist() if isinstance(labels, np.ma.MaskedArray) else [False] * len(marks)
    given = labels if isinstance(labels, list | tuple) else marks.tolist()  # an array would make all of them text
    check_labels([None if hidden else plain_label(label) for label, hidden in zip(given, mask, strict=True)])
    if marks.dtype.kind == "S" or (marks.dtype.kind == "O" and isinstance(marks[0], bytes)):
        return np.asarray([as_text(mark) for mark in marks.tolist()])
    return marks


def check_labels(labels: Sequence[Any]) -> None:
    """Refuse what cannot name a class; see `label_array`."""
    missing = [index for index, label in enumerate(labels) if _is_missing(label)]
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise UserError(
            f"Expected a label for every image, got none for {len(missing)} of {len(labels)} (image {shown}, counted "
            "from 0); label them or leave them out"
        )
    kinds = {_kind(label) for label in labels}
    if len(kinds) > 1 or not kinds <= {"number", "string"}:
        raise UserError(
            f"Expected labels that are all strings or all numbers, got {' and '.join(sorted(kinds))}; convert them"
        )


def plain_label(label: Any) -> Any:
    """A scalar of numpy or torch as Python's own number or string; anything else as it is.

    Raises:
        UserError: an array or tensor of several values.
    """
    if not hasattr(label, "item"):
        return label
    try:
        return label.item()
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"Expected one label per image, got a vector {list(label.shape)}; of one-hot vectors, take the argmax"
        ) from error


def as_text(name: Any) -> str:
    """A name as text: bytes are decoded as UTF-8, or as Latin-1 if that fails."""
    if not isinstance(name, bytes):
        return str(name)
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("latin1")


def _is_missing(label: Any) -> bool:
    if label is None or (isinstance(label, str | bytes) and not label.strip()):
        return True
    try:
        return bool(label != label)  # only NaN and NaT
    except TypeError:  # pandas.NA, which is neither
        return True
    except ValueError:  # an array in a list
        return False


def _kind(label: Any) -> str:
    if isinstance(label, str | bytes):
        return "string"
    return "number" if isinstance(label, numbers.Number | np.bool_) else type(label).__name__


def names_in(dataset: Any, labels: Sequence[Any]) -> list[str] | None:
    """`dataset.classes`, if these are different names and each label is the number of one; else None."""
    names = getattr(dataset, "classes", None)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return None
    numbered = all(isinstance(label, int | np.integer) and 0 <= label < len(names) for label in labels)
    return [*names] if numbered and len(set(names)) == len(names) else None


def names_of(kinds: npt.NDArray[Any], class_names: Sequence[str]) -> tuple[str, ...]:
    """The names of the labels `kinds`, sorted, out of those of the labels 0, 1, ...

    Raises:
        UserError: labels that are not such numbers.
    """
    if kinds.dtype.kind not in "iub" or kinds[0] < 0 or kinds[-1] >= len(class_names):
        raise UserError(
            f"Expected labels from 0 to {len(class_names) - 1}, one for each of the class names, got {kinds[0]} to "
            f"{kinds[-1]}; name all classes"
        )
    return tuple(str(class_names[kind]) for kind in kinds.tolist())

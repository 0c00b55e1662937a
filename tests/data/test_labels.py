"""Labels as tables, arrays and datasets have them."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from metakm import FewShotDataset
from metakm.errors import UserError

IMAGES = np.zeros((4, 1, 2, 2), np.uint8)


@pytest.mark.parametrize(
    "labels",
    [
        pd.Series([0, 0, 1, None]),
        pd.Series([0, 0, 1, None], dtype="Int64"),
        pd.Series(["a", "a", "b", None]),
        pd.Series(["a", "a", "b", None], dtype="category"),
        pd.Series(["a", "a", "b", pd.NA], dtype="string"),
        pd.Series([pd.Timestamp(0), pd.Timestamp(0), pd.Timestamp(1), pd.NaT]),
        ["a", "a", "b", float("nan")],  # of which numpy makes the text "nan"
        ["a", "a", "b", None],
        ["a", "a", "b", ""],
        ["a", "a", "b", " "],
        np.array([0, 0, 1, np.nan]),
        np.ma.array([0, 0, 1, 1], mask=[0, 0, 0, 1]),
        torch.tensor([0, 0, 1, float("nan")]),
    ],
)
def test_a_missing_label_is_refused_by_its_image(labels: Any) -> None:
    with pytest.raises(UserError, match=r"a label for every image, got none for 1 of 4 \(image 3, counted from 0\)"):
        FewShotDataset.from_arrays(IMAGES, labels)


def test_many_missing_labels_are_counted() -> None:
    with pytest.raises(UserError, match=r"none for 7 of 8 \(image 1, 2, 3, 4, 5, \.\.\., counted"):
        FewShotDataset.from_arrays(IMAGES.repeat(2, 0), [1, *[None] * 7])


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 0, 1, "1"], "all strings or all numbers, got number and string"),
        (np.array([0, 0, 1, "1"], object), "all strings or all numbers, got number and string"),
        ([{"id": 0}] * 4, "all strings or all numbers, got dict"),
        ([[0], [0], [1], [0, 1]], "one label per image"),
        (np.eye(2)[[0, 0, 1, 1]], r"one label per image, got labels \[4, 2\]"),
        (torch.eye(2)[[0, 0, 1, 1]], r"one label per image, got labels \[4, 2\]"),
        (3, r"one label per image, got labels \[\]"),
    ],
)
def test_what_is_no_label_is_refused(labels: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        FewShotDataset.from_arrays(IMAGES, labels)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (pd.Series([7, 7, 5, 5]), ("5", "7")),
        (pd.Series([7, 7, 5, 5], dtype="Int64"), ("5", "7")),
        (pd.Series(["b", "b", "a", "a"], dtype="category"), ("a", "b")),
        ([torch.tensor(7), torch.tensor(7), torch.tensor(5), torch.tensor(5)], ("5", "7")),
        ([np.str_("b"), "b", "a", "a"], ("a", "b")),
        (np.array([b"b", b"b", b"\xc3\xa4", b"\xc3\xa4"]), ("b", "\u00e4")),
        ([b"b", b"b", b"a", b"a"], ("a", "b")),
        (np.array([b"b", b"b", b"a", b"a"], object), ("a", "b")),
        (np.array([0.5, 0.5, 0.1, 0.1], np.float32), ("0.1", "0.5")),
        ([True, True, False, False], ("False", "True")),
    ],
)
def test_every_usual_form_of_a_label_names_its_class(labels: Any, names: tuple[str, ...]) -> None:
    found = FewShotDataset.from_arrays(IMAGES, labels)
    assert (found.class_names, found.counts.tolist()) == (names, [2, 2])

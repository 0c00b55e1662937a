import dataclasses

import numpy as np
import pytest

from metakm.data import FewShotDataset
from metakm.errors import UserError

IMAGES = np.arange(5 * 3 * 2 * 2, dtype=np.uint8).reshape(5, 3, 2, 2)


def test_from_arrays_sorts_by_class_and_keeps_the_order_within() -> None:
    made = FewShotDataset.from_arrays(IMAGES, ["b", "a", "b", "c", "a"])
    assert made.class_names == ("a", "b", "c")
    assert made.offsets.tolist() == [0, 2, 4, 5]
    assert np.array_equal(made.images, IMAGES[[1, 4, 0, 2, 3]])
    assert made.image_shape == (3, 2, 2)
    assert made.n_classes == 3
    assert made.counts.tolist() == [2, 2, 1]
    assert (made.name, made.split, made.rotations) == ("custom", "train", False)


def test_from_arrays_keeps_the_order_of_many_images() -> None:
    values = np.arange(250, dtype=np.uint8)
    made = FewShotDataset.from_arrays(values[:, None, None, None], values % 2)
    assert made.images.ravel().tolist() == [*range(0, 250, 2), *range(1, 250, 2)]


def test_the_split_hash_tells_names_counts_and_split_apart() -> None:
    hashes = [
        FewShotDataset.from_arrays(IMAGES, labels, split=split).split_hash
        for labels, split in [
            ([0, 0, 0, 1, 1], "train"),
            ([0, 0, 1, 1, 1], "train"),
            ([0, 0, 0, 2, 2], "train"),
            ([0, 0, 0, 1, 1], "test"),
        ]
    ]
    assert len(set(hashes)) == 4
    assert all(len(h) == 16 for h in hashes)


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (IMAGES.astype(np.float32), [0] * 5, "uint8"),
        (IMAGES[:, 0], [0] * 5, r"\[M, C, H, W\], got uint8 \[5, 2, 2\]"),
        (IMAGES[:0], [], "uint8"),
        (IMAGES, [0] * 4, "one label an image"),
        (IMAGES, np.zeros((5, 1)), "one label an image"),
    ],
)
def test_from_arrays_refuses_what_does_not_fit(images: np.ndarray, labels: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        FewShotDataset.from_arrays(images, labels)


def test_rotations_need_square_images() -> None:
    with pytest.raises(UserError, match="square"):
        FewShotDataset.from_arrays(np.zeros((2, 1, 4, 5), np.uint8), [0, 1], rotations=True)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(UserError, match="'valid'; did you mean 'val'"):
        FewShotDataset.from_arrays(IMAGES, [0, 0, 0, 1, 1], split="valid")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"class_names": ("a", "a")}, "1 repeated"),
        ({"class_names": ("a", "b", "c")}, r"int64 \[4\]"),
        ({"offsets": np.array([0, 3, 4])}, "rising from 0 to 5"),
        ({"offsets": np.array([1, 3, 5])}, "rising from 0 to 5"),
        ({"offsets": np.array([0, 5, 5])}, "no empty class"),
        ({"offsets": np.array([0.0, 3.0, 5.0])}, "int64"),
    ],
)
def test_classes_must_cover_the_images(change: dict[str, object], said: str) -> None:
    good = FewShotDataset.from_arrays(IMAGES, [0, 0, 0, 1, 1])
    with pytest.raises(UserError, match=said):
        dataclasses.replace(good, **change)

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

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


def test_turned_images_follow_one_another_direction_by_direction() -> None:
    made = FewShotDataset.from_arrays(IMAGES, [0, 0, 1, 1, 1], rotations=True)
    assert made.rotated.shape == (20, 3, 2, 2)
    assert made.rotated.flags.c_contiguous
    assert made.rotated[0, 0].tolist() == [[0, 1], [2, 3]]
    assert made.rotated[5, 0].tolist() == [[1, 3], [0, 2]]  # counter-clockwise
    assert made.rotated[10, 0].tolist() == [[3, 2], [1, 0]]
    assert made.rotated[15, 0].tolist() == [[2, 0], [3, 1]]
    assert made.rotated[19, 2].tolist() == np.rot90(IMAGES[4, 2], 3).tolist()
    assert made.rotated is made.rotated  # built once


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
        (IMAGES[:0], [], "at least one image"),
        (IMAGES, [0] * 4, "one label per image"),
        (IMAGES, np.zeros((5, 1)), "one label per image"),
    ],
)
def test_from_arrays_refuses_what_does_not_fit(images: np.ndarray, labels: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        FewShotDataset.from_arrays(images, labels)


@pytest.mark.parametrize("shape", [(84, 84, 3), (84, 100, 3), (28, 28, 1), (64, 64, 13), (84, 84, 4)])
def test_channels_that_come_last_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"which looks like \[M, H, W, C\]; move the channels to the front"):
        FewShotDataset.from_arrays(np.zeros((2, *shape), np.uint8), [0, 1])


@pytest.mark.parametrize(
    "shape", [(3, 84, 84), (1, 28, 28), (13, 64, 64), (3, 3, 3), (2, 4, 3), (200, 11, 11), (8, 1, 3)]
)
def test_channels_that_come_first_are_taken_whatever_their_number(shape: tuple[int, ...]) -> None:
    assert FewShotDataset.from_arrays(np.zeros((2, *shape), np.uint8), [0, 1]).image_shape == shape


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


class Items:
    """A map-style dataset of the pairs it is given."""

    def __init__(self, *pairs: object) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> object:
        return self.pairs[index]


def test_from_dataset_takes_tensors_arrays_and_pictures_alike() -> None:
    byte = np.array([[[0, 51], [102, 255]]] * 3, np.uint8)  # [3, 2, 2]
    same = Items(
        (torch.from_numpy(byte), torch.tensor(1)),
        (byte, np.int64(0)),
        (byte / 255, 1),
        (torch.from_numpy(byte).float() / 255, 0),
        (Image.fromarray(byte.transpose(1, 2, 0)), 1),
    )
    made = FewShotDataset.from_dataset(same, name="mine", split="val")
    assert (made.name, made.split, made.class_names, made.counts.tolist()) == ("mine", "val", ("0", "1"), [2, 3])
    assert (made.images == byte).all()
    grey = FewShotDataset.from_dataset(Items((Image.fromarray(byte[0]), "b"), (Image.fromarray(byte[0]), "a")))
    assert grey.image_shape == (1, 2, 2)
    assert grey.class_names == ("a", "b")


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_from_dataset_takes_tensors_of_any_precision_that_take_gradients(kind: torch.dtype) -> None:
    image = torch.tensor([[[0.0, 0.25], [0.5, 1.0]]], dtype=kind, requires_grad=True)
    assert FewShotDataset.from_dataset(Items((image, 0))).images.tolist() == [[[[0, 64], [128, 255]]]]


def test_from_dataset_takes_a_torchvision_dataset(tmp_path: Path) -> None:
    for name, level in (("crow", 10), ("jay", 200)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (6, 6), (level, 0, 0)).save(tmp_path / name / "a.png")
    found = torchvision.datasets.ImageFolder(str(tmp_path), transform=torchvision.transforms.ToTensor())
    made = FewShotDataset.from_dataset(found)
    assert made.image_shape == (3, 6, 6)
    assert made.images[:, 0, 0, 0].tolist() == [10, 200]
    assert made.class_names == ("crow", "jay")


def test_classes_of_a_dataset_may_be_a_tuple() -> None:
    items = Items((np.zeros((1, 2, 2), np.uint8), 0), (np.zeros((1, 2, 2), np.uint8), 1))
    items.classes = ("crow", "jay")  # type: ignore[attr-defined]
    assert FewShotDataset.from_dataset(items).class_names == ("crow", "jay")
    items.pairs = tuple((image, bool(label)) for image, label in items.pairs)  # type: ignore[misc]
    assert FewShotDataset.from_dataset(items).class_names == ("crow", "jay")


@pytest.mark.parametrize("classes", [["only"], ["same", "same"], [("a", "b"), ("c",)], 2, None])
def test_classes_of_a_dataset_that_do_not_name_its_labels_are_left_aside(classes: object) -> None:
    items = Items((np.zeros((1, 2, 2), np.uint8), 0), (np.zeros((1, 2, 2), np.uint8), 1))
    items.classes = classes  # type: ignore[attr-defined]
    assert FewShotDataset.from_dataset(items).class_names == ("0", "1")


def test_class_names_must_name_every_label() -> None:
    assert FewShotDataset.from_arrays(IMAGES, [0, 0, 0, 1, 1], class_names=["crow", "jay"]).class_names[1] == "jay"
    for labels in ([0, 0, 0, 2, 2], [-1, 0, 0, 1, 1], ["a", "a", "b", "b", "b"]):
        with pytest.raises(UserError, match="Expected labels from 0 to 1, one for each of the class names"):
            FewShotDataset.from_arrays(IMAGES, labels, class_names=["crow", "jay"])
    with pytest.raises(UserError, match="at least one image"):
        FewShotDataset.from_arrays(IMAGES[:0], [], class_names=["crow", "jay"])


GOOD = (np.zeros((1, 2, 2), np.uint8), 0)


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (iter([GOOD]), "a dataset with a length, got list_iterator"),
        (Items(), "at least one image"),
        (Items(GOOD, 3), "pairs of image and label, got int for item 1"),
        (Items(GOOD, (GOOD[0],)), "pairs of image and label, got tuple for item 1"),
        (Items(GOOD, (np.zeros((1, 2, 3), np.uint8), 0)), r"one shape, got \[1, 2, 2\] for item 0 and \[1, 2, 3\]"),
        (Items((np.zeros((2, 2, 3), np.uint8), 0)), r"with 1 or 3 channels, got \[2, 2, 3\] for item 0; channels come"),
        (Items((np.zeros((2, 2), np.uint8), 0)), r"got \[2, 2\] for item 0"),
        (Items((np.zeros((3, 0, 2), np.uint8), 0)), r"got \[3, 0, 2\] for item 0"),
        (Items((np.full((1, 2, 2), 1.5), 0)), "floats from 0 to 1, got float64 from 1.5 to 1.5 for item 0"),
        (Items((np.full((1, 2, 2), np.nan), 0)), "floats from 0 to 1"),
        (Items((np.zeros((1, 2, 2), np.int32), 0)), "uint8 images, or floats from 0 to 1, got int32"),
        (Items((Image.new("RGBA", (2, 2)), 0)), 'mode "L" or "RGB", got RGBA for item 0'),
        (Items({"image": GOOD[0], "label": 0}), r"a dict of 'image', 'label' for item 0; pass \[\(item\["),
        (Items(GOOD, "ab"), "pairs of image and label, got str for item 1"),
        ({"train": [GOOD], "test": [GOOD]}, "one dataset, got a dict of 'train', 'test'; pass one of them"),
        (Items(GOOD, (GOOD[0], np.eye(2)[1])), r"a vector \[2\]; of one-hot vectors, take the argmax \(item 1\)"),
        (Items((GOOD[0], torch.eye(3)[1])), r"a vector \[3\]"),
        (Items((GOOD[0], [0, 1])), "one label per image"),
        (Items(GOOD, (GOOD[0], None)), r"none for 1 of 2 \(image 1"),
    ],
)
def test_from_dataset_refuses_what_does_not_fit_and_numbers_it(dataset: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        FewShotDataset.from_dataset(dataset)

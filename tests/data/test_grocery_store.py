"""Grocery Store: a small fake in its repository's layout, and the lists of the real data."""

import numpy as np
import pytest
from photographs import grocery_files, write_files, write_tar

from metakm.data import load_dataset
from metakm.data.archives import TarSource
from metakm.data.grocery_store import list_groceries, split_of
from metakm.errors import UserError


def test_class_numbers_are_divided_by_four():
    assert [split_of(n) for n in range(9)] == ["test", "val", "train", "train"] * 2 + ["test"]
    numbers = [split_of(n) for n in range(81)]
    assert [numbers.count(split) for split in ("train", "val", "test")] == [40, 20, 21]


def test_archive_and_folders_give_the_same_arrays(tmp_path):
    files = grocery_files(each=3)
    write_tar(tmp_path / "a" / "grocery-store" / "grocery-store-128.tar.xz", files)
    write_files(tmp_path / "b", files)
    write_files(tmp_path / "c", grocery_files(each=3, top="GroceryStoreDataset/dataset"))
    for split, numbers in {"val": range(1, 81, 4), "test": range(0, 81, 4)}.items():
        first = load_dataset("grocery-store", split, root=tmp_path / "a")
        assert first.class_names == tuple(f"{n:02d} Kind-{n}" for n in numbers)
        assert first.images.shape == (3 * len(numbers), 3, 84, 84)
        assert np.abs(first.images[:, 0].mean((1, 2)) - np.repeat([3 * n for n in numbers], 3)).max() < 3
        for root in "bc":
            other = load_dataset("grocery-store", split, root=tmp_path / root)
            assert np.array_equal(other.images, first.images)
            assert other.split_hash == first.split_hash


def test_images_have_the_size_that_is_asked_for(tmp_path):
    write_files(tmp_path, grocery_files(each=2, size=(9, 6)))
    assert load_dataset("grocery-store", "val", root=tmp_path, image_size=12).image_shape == (3, 12, 12)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"val.txt": None}, "Expected val.txt in"),
        ({"val.txt": b"val/Fruit/Nothing.jpg, 3, 1\n"}, "got 'val/Fruit/Nothing.jpg, 3, 1'"),
        ({"val.txt": b"no line of a list\n"}, "Expected lines of an image's path"),
        ({"test.txt": b""}, "Expected 81 classes, and each image once, got 0 classes and 0 images"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, changed, said):
    files = grocery_files(each=1)
    files |= {f"grocery-store/{name}": content for name, content in changed.items()}
    write_files(tmp_path, {name: content for name, content in files.items() if content is not None})
    with pytest.raises(UserError, match=said):
        load_dataset("grocery-store", "train", root=tmp_path)


def test_an_image_that_is_listed_twice_is_refused(tmp_path):
    files = grocery_files(each=1)
    files["grocery-store/val.txt"] = files["grocery-store/test.txt"]
    write_files(tmp_path, files)
    with pytest.raises(UserError, match="got 81 classes and 81 images on 162 lines"):
        load_dataset("grocery-store", "train", root=tmp_path)


def test_missing_data_say_what_where_and_how(tmp_path):
    with pytest.raises(UserError) as caught:
        load_dataset("grocery-store", root=tmp_path)
    for part in ("grocery-store-128.tar.xz", str(tmp_path / "grocery-store"), "clone", "--dataset glyphs"):
        assert part in str(caught.value)


def test_the_real_data_are_whole(real_data):
    path = real_data / "grocery-store" / "grocery-store-128.tar.xz"
    if not path.exists():
        pytest.skip("grocery-store/grocery-store-128.tar.xz is not under METAKM_DATA")
    found = list_groceries(TarSource(path))
    assert [sum(each.part == part for each in found) for part in range(3)] == [2640, 296, 2485]
    counts = np.bincount([each.label for each in found])
    assert (len(counts), counts.min(), counts.max()) == (81, 35, 143)
    kinds = {each.label: each.member.name.split("/")[-2] for each in found}
    assert [kinds[label] for label in (0, 1, 2, 80)] == ["Golden-Delicious", "Granny-Smith", "Pink-Lady", "Zucchini"]
    assert all(each.member.name.split("/")[-2] == kinds[each.label] for each in found)

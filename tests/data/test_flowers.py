"""Flowers-102: a small fake in torchvision's layout, and the tables of the real data."""

import re

import numpy as np
import pytest
from photographs import flower_files, mat, write_files, write_tar

from metakm.data import load_dataset
from metakm.data.archives import TarSource
from metakm.data.flowers import find_flowers, list_flowers, split_of
from metakm.data.splits import split_hash
from metakm.errors import UserError

PUBLISHED = {
    "val": [10, 16, 17, 23, 26, 47, 53, 56, 57, 62, 82, 83, 86, 97, 102],
    "test": [5, 9, 15, 19, 35, 40, 41, 42, 45, 46, 65, 85, 89, 94, 96, 98],
}


def test_the_split_is_that_of_meta_dataset():
    found = {split: [n for n in range(1, 103) if split_of(n) == split] for split in ("train", "val", "test")}
    assert {split: found[split] for split in PUBLISHED} == PUBLISHED
    assert len(found["train"]) == 71
    assert {90, 38, 80, 30, 29, 12, 43, 27, 4, 64} <= set(found["train"])  # first of the published list


def test_archive_and_folder_give_the_same_arrays(tmp_path):
    files = flower_files(each=3)
    write_tar(tmp_path / "a" / "flowers-102" / "flowers-102-64px.tar.xz", files)
    write_tar(tmp_path / "b" / "flowers-102-64px.tar.xz", files)
    write_files(tmp_path / "c", files)
    for split, names in PUBLISHED.items():
        first = load_dataset("flowers", split, root=tmp_path / "a")
        assert first.class_names == tuple(f"{n:03d}" for n in names)
        assert first.images.shape == (3 * len(names), 3, 84, 84)
        assert (first.rotations, first.counts.tolist()) == (False, [3] * len(names))
        assert np.abs(first.images[:, 0].mean((1, 2)) - np.repeat([2 * n for n in names], 3)).max() < 3
        for root in "bc":
            other = load_dataset("flowers", split, root=tmp_path / root)
            assert np.array_equal(other.images, first.images)
            assert other.split_hash == first.split_hash


def test_images_have_the_size_that_is_asked_for(tmp_path):
    write_files(tmp_path, flower_files(each=1, size=(9, 6)))
    assert load_dataset("flowers", "val", root=tmp_path, image_size=12).image_shape == (3, 12, 12)


def test_images_come_in_the_order_of_their_numbers_with_their_official_part(tmp_path):
    write_files(tmp_path, flower_files(each=4))
    found = list_flowers(find_flowers([tmp_path]))
    assert [flower.label for flower in found[:104]] == [*range(1, 103), 1, 2]
    assert [found[102 * image].part for image in range(4)] == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"jpg/image_00007.jpg": None}, "Expected images from 1 on, .*got 101 images, 102 with a part"),
        ({"imagelabels.mat": None}, "Expected a readable file, got .*imagelabels.mat"),
        ({"imagelabels.mat": b"no table"}, "Expected MATLAB's tables, got .*fetch it again"),
        ({"imagelabels.mat": mat(labels=[[0.5] * 102])}, "Expected whole numbers as labels .* got float64"),
        ({"imagelabels.mat": mat(labels=[[7] * 102])}, "Expected images from 1 on, .*102 labels of 1 classes"),
        ({"setid.mat": mat(trnid=[[1]], valid=[[2]])}, "Expected whole numbers as tstid"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, changed, said):
    files = flower_files(each=1) | {f"flowers-102/{name}": content for name, content in changed.items()}
    write_files(tmp_path, {name: content for name, content in files.items() if content is not None})
    with pytest.raises(UserError, match=said):
        load_dataset("flowers", "train", root=tmp_path)


def test_missing_data_say_what_where_and_how(tmp_path):
    with pytest.raises(UserError) as caught:
        load_dataset("flowers", root=tmp_path)
    for part in ("flowers-102-64px.tar.xz", str(tmp_path / "flowers-102"), "download=True", "--dataset glyphs"):
        assert part in str(caught.value)


def test_the_real_data_are_whole(real_data):
    path = real_data / "flowers-102" / "flowers-102-64px.tar.xz"
    if not path.exists():
        pytest.skip("flowers-102/flowers-102-64px.tar.xz is not under METAKM_DATA")
    found = list_flowers(TarSource(path))
    assert len(found) == 8189
    assert [sum(flower.part == part for flower in found) for part in range(3)] == [1020, 1020, 6149]
    counts = np.bincount([flower.label for flower in found])
    classes = {split: [] for split in ("train", "val", "test")}
    for label in range(1, 103):
        classes[split_of(label)].append((f"{label:03d}", int(counts[label])))
    assert split_hash(classes) == "405bfbebceedf51b"
    assert (counts[1:].min(), counts.max()) == (40, 258)
    assert re.fullmatch(r".*image_08189\.jpg", found[-1].member.name)

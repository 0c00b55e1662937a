"""CIFAR-FS, FC100, CUB-200-2011 and tieredImageNet: small fakes in the published formats, for want of the real data."""

import os
import pickle
from collections import Counter

import numpy as np
import pytest
from photographs import CIFAR_SUPERCLASSES, bird_files, cifar_files, tiered_files, write_files

from metakm.data import cub, load_dataset
from metakm.errors import UserError

SPLITS = ("train", "val", "test")
FINE = sorted(name for names in CIFAR_SUPERCLASSES.values() for name in names.split())


@pytest.mark.parametrize(("name", "sizes"), [("cifar-fs", (64, 16, 20)), ("fc100", (60, 20, 20))])
@pytest.mark.parametrize("protocol", [2, 4])
def test_cifars_pickles_give_their_images_by_class(tmp_path, name, sizes, protocol):
    write_files(tmp_path, cifar_files(protocol=protocol))
    found = [load_dataset(name, split, root=tmp_path) for split in SPLITS]
    assert tuple(each.n_classes for each in found) == sizes
    assert sorted(n for each in found for n in each.class_names) == FINE
    for each in found:
        assert each.images.shape == (3 * each.n_classes, 3, 32, 32)
        assert each.images[:, 0, 5, 5].tolist() == [2 * FINE.index(n) for n in each.class_names for _ in range(3)]
        assert each.images[:, 1, 5, 5].tolist() == [0, 1, 2] * each.n_classes  # training images, then test images
        assert (each.images[:, 2, 0, 0] == 255).all()
        assert not each.images[:, 2, 0, 1].any()


def test_cifar_fs_has_the_published_split(tmp_path):
    write_files(tmp_path / "cifar100", cifar_files())
    val, test = (load_dataset("cifar-fs", split, root=tmp_path).class_names for split in ("val", "test"))
    # as in torchmeta's copy of the authors' lists, by superclass
    published = """
        beaver otter flatfish shark lamp television beetle butterfly sea camel cattle crab crocodile maple_tree
        motorcycle tractor
        """
    assert {*val} == {*published.split()}
    published = """
        whale poppy rose sweet_pepper telephone bed table wardrobe leopard plain chimpanzee fox snail worm baby man
        woman bicycle pickup_truck rocket
        """
    assert {*test} == {*published.split()}


def test_fc100_divides_superclasses(tmp_path):
    write_files(tmp_path, cifar_files())
    above = {name: key for key, names in CIFAR_SUPERCLASSES.items() for name in names.split()}
    found = {split: {above[n] for n in load_dataset("fc100", split, root=tmp_path).class_names} for split in SPLITS}
    assert {split: len(names) for split, names in found.items()} == {"train": 12, "val": 4, "test": 4}
    assert found["test"] == {"aquatic_mammals", "insects", "medium_mammals", "people"}


def test_cifar_is_resized_where_asked(tmp_path):
    write_files(tmp_path, cifar_files(train=1))
    assert load_dataset("fc100", "val", root=tmp_path, image_size=40).image_shape == (3, 40, 40)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("meta", {"fine_label_names": ["a", "a"], "coarse_label_names": ["b"]}, "different names as fine_label_names"),
        ("meta", {"fine_label_names": ["a"], "coarse_label_names": ["b"]}, "of 1 classes in .*train"),
        ("train", {"data": np.zeros((2, 5), np.uint8)}, "got KeyError"),
        ("test", [1, 2], "got list in .*test"),
        ("train", {"data": np.zeros((1, 3072)), "fine_labels": [0], "coarse_labels": [0]}, "got data float64"),
    ],
)
def test_what_is_not_cifar_is_refused(tmp_path, file, content, said):
    files = cifar_files(train=1)
    write_files(tmp_path, {**files, f"cifar-100-python/{file}": pickle.dumps(content)})
    with pytest.raises(UserError, match=said):
        load_dataset("cifar-fs", root=tmp_path)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made by a pickle",)


@pytest.mark.parametrize(
    ("name", "files", "bad"),
    [
        ("fc100", cifar_files, "cifar-100-python/train"),
        ("tiered-imagenet", tiered_files, "val_labels.pkl"),
        ("tiered-imagenet", tiered_files, "train_images_png.pkl"),
    ],
)
def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(tmp_path, monkeypatch, name, files, bad):
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path, {**files(), bad: pickle.dumps(Evil())})
    with pytest.raises(UserError, match="do not trust this file"):
        load_dataset(name, root=tmp_path)
    assert not (tmp_path / "made by a pickle").exists()


def test_cub_has_the_split_of_chen_et_al(tmp_path):
    assert Counter(cub.split_of(n) for n in range(1, 201)) == {"train": 100, "val": 50, "test": 50}
    assert [cub.split_of(n) for n in range(1, 6)] == ["train", "val", "train", "test", "train"]
    write_files(tmp_path, bird_files())
    found = load_dataset("cub", "val", root=tmp_path)
    assert found.class_names[:2] == ("002.Bird_2", "006.Bird_6")
    assert found.images.shape == (100, 3, 84, 84)
    assert np.abs(found.images[:, 0].mean((1, 2)) - np.repeat(np.arange(2, 201, 4), 2)).max() < 3
    assert load_dataset("cub", "test", root=tmp_path, image_size=16).image_shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"images.txt": None}, "Expected images.txt in"),
        ({"images.txt": b"1 002.Bird_2/Other.jpg\n"}, "got '1 002.Bird_2/Other.jpg'"),
        ({"images.txt": b"1 002.Bird_2/Bird_2_0000_0.jpg\n"}, "got 1 of them"),
        ({"images/004.Bird_4/Bird_4_0001_7.jpg": None}, "got '8 004.Bird_4/Bird_4_0001_7.jpg'"),
    ],
)
def test_an_incomplete_cub_is_refused(tmp_path, changed, said):
    files = bird_files() | {f"CUB_200_2011/{name}": content for name, content in changed.items()}
    write_files(tmp_path, {name: content for name, content in files.items() if content is not None})
    with pytest.raises(UserError, match=said):
        load_dataset("cub", root=tmp_path)


@pytest.mark.parametrize("protocol", [2, 4])
def test_tiered_imagenets_pickles_give_their_images_by_class(tmp_path, protocol):
    write_files(tmp_path / "tiered-imagenet", tiered_files(protocol=protocol))
    found = load_dataset("tiered-imagenet", "train", root=tmp_path)
    assert found.class_names == tuple(f"{n:03d} train thing {n}" for n in range(4))
    assert found.images.shape == (12, 3, 84, 84)
    assert found.images[:, 0, 5, 5].tolist() == [0, 0, 0, 10, 10, 10, 20, 20, 20, 30, 30, 30]
    hashes = {load_dataset("tiered-imagenet", split, root=tmp_path).split_hash for split in SPLITS}
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("train_images_png.pkl", [], "Expected a list of 12 images, as there are labels, got 0 of them"),
        ("train_labels.pkl", {"label_general": [1]}, "got KeyError"),
        ("val_labels.pkl", {"label_specific": [0.5]}, "got label_specific float64"),
        ("val_labels.pkl", {"label_specific": [7], "label_specific_str": ["a"]}, "got class 7 with 1 names"),
        (
            "val_labels.pkl",
            {"label_specific": np.zeros(9, int), "label_general_str": ["train category 0"]},
            "got 'train category 0' in train and val",
        ),
    ],
)
def test_what_is_not_tiered_imagenet_is_refused(tmp_path, file, content, said):
    write_files(tmp_path, {**tiered_files(), file: pickle.dumps(content)})
    with pytest.raises(UserError, match=said):
        load_dataset("tiered-imagenet", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("cifar-fs", ("cifar-100-python/", "cifar-100-python.tar.gz")),
        ("cub", ("CUB_200_2011/", "unpack")),
        ("tiered-imagenet", ("_images_png.pkl", "cannot be downloaded")),
    ],
)
def test_missing_data_say_what_where_and_how(tmp_path, name, parts):
    with pytest.raises(UserError) as caught:
        load_dataset(name, root=tmp_path)
    for part in (*parts, str(tmp_path), "--dataset glyphs"):
        assert part in str(caught.value)

"""Supervised parts: what goes where, and that nothing is in two of them."""

import io
import lzma
import tarfile

import numpy as np
import pytest
import torch
from photographs import flower_files, grocery_files, write_files
from PIL import Image

from metakm.data.archives import TarSource
from metakm.data.tiny_imagenet import split_classes
from metakm.errors import UserError
from metakm.experiments.batches import Batches, pad_crop, resized_crop
from metakm.experiments.classification import (
    first_per_class,
    labels_of,
    load_cifar10,
    load_image_folder,
    load_tiny_imagenet_classes,
    split_members,
)
from metakm.experiments.fine_grained import load_fine_grained


def write(path, value):
    """A 4x4 picture of one grey value, by which it is known again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(path)


@pytest.fixture
def flat(tmp_path):
    """`<class>/`: two classes of 20 images; every image has a value of its own."""
    for label in range(2):
        for number in range(20):
            write(tmp_path / "pets" / f"kind{label}" / f"{number:02d}.png", 20 * label + number)
    return tmp_path / "pets"


def values(part):
    return part.images[:, 0, 0, 0].tolist()


def test_a_flat_folder_is_divided_class_by_class(flat):
    data = load_image_folder(flat, side=4)
    assert data.class_names == ("kind0", "kind1")
    assert [p.counts.tolist() for p in (data.train, data.val, data.test)] == [[14, 14], [2, 2], [4, 4]]
    everything = values(data.train) + values(data.val) + values(data.test)
    assert sorted(everything) == list(range(40))
    for part in (data.train, data.val, data.test):
        np.testing.assert_array_equal(np.array(values(part)) // 20, labels_of(part))


def test_hidden_files_and_other_files_are_no_images(flat):
    (flat / "kind0" / "._00.png").write_bytes(b"not an image")
    (flat / "kind0" / "notes.txt").write_text("not an image")
    assert load_image_folder(flat, side=4).train.counts.tolist() == [14, 14]


def test_images_lie_at_any_depth_below_their_class(tmp_path):
    """Neither the part nor the class is taken from the folders below the class's own, or from hidden ones."""
    for number in range(10):
        for kind, inner in (("cats", "indoor"), ("cats", "outdoor/test"), ("dogs", "indoor"), ("dogs", "train/a")):
            write(tmp_path / "train" / kind / inner / f"{number}.png", 1)
            write(tmp_path / "test" / kind / inner / f"{number}.png", 2)
        write(tmp_path / "train" / "cats" / ".thumbs" / f"{number}.png", 9)
        write(tmp_path / "train" / ".cache" / f"{number}.png", 9)
    data = load_image_folder(tmp_path, side=4)
    assert data.class_names == ("cats", "dogs")
    assert [p.counts.tolist() for p in (data.train, data.val, data.test)] == [[18, 18], [2, 2], [20, 20]]
    assert (set(values(data.train)), set(values(data.test))) == ({1}, {2})


def test_a_test_folder_is_kept_and_validation_comes_out_of_training(flat, tmp_path):
    root = tmp_path / "with-test"
    root.mkdir()
    flat.rename(root / "train")
    for label in range(2):
        write(root / "test" / f"kind{label}" / "a.jpeg", 200 + label)
    data = load_image_folder(root, side=4)
    assert [p.counts.tolist() for p in (data.train, data.val, data.test)] == [[18, 18], [2, 2], [1, 1]]
    assert min(values(data.test)) > 190
    assert sorted(values(data.train) + values(data.val)) == list(range(40))


def test_a_validation_folder_is_kept(tmp_path):
    for split, value in (("train", 1), ("val", 2), ("test", 3)):
        for name in ("a", "b"):
            write(tmp_path / "own" / split / name / "0.png", value)
    data = load_image_folder(tmp_path / "own", side=4)
    assert [values(p) for p in (data.train, data.val, data.test)] == [[1, 1], [2, 2], [3, 3]]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "no images"),
        (["a/0.png"], "two"),
        (["a/0.png", "b/0.png", "c.png"], r"class's folder .*images/c\.png"),
        (["train/c.png", "train/b/0.png", "test/a/0.png"], r"class's folder .*images/train/c\.png"),
        (["train/a/0.png", "train/b/0.png"], "train"),
        (["train/a/0.png", "train/b/0.png", "test/a/0.png"], "same classes"),
        (["a/0.png", "b/0.png"], "at least 10 images"),
    ],
)
def test_folders_that_make_no_problem_are_refused(tmp_path, files, said):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in files:
        write(folder / name, 7)
    with pytest.raises(UserError, match=said):
        load_image_folder(folder, side=4)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        load_image_folder(tmp_path / "nowhere", side=4)


def cifar_archive(path, per_class=12, top=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for split in ("train", "test"):
            for label in ("cat", "dog"):
                for number in range(per_class):
                    picture = io.BytesIO()
                    Image.fromarray(np.full((32, 32, 3), number, np.uint8)).save(picture, "png")
                    info = tarfile.TarInfo(f"{top}{split}/{label}/{number:04d}.png")
                    info.size = picture.tell()
                    picture.seek(0)
                    archive.addfile(info, picture)
        archive.addfile(tarfile.TarInfo("README.txt"))  # beside the images' folder
    path.write_bytes(lzma.compress(buffer.getvalue()))


@pytest.mark.parametrize("top", ["", "./", "cifar10-jpeg/"])
def test_cifar_is_read_out_of_its_archive_and_resized(tmp_path, top):
    cifar_archive(tmp_path / "cifar10" / "cifar10-jpeg.tar.xz", top=top)
    data = load_cifar10(16, [tmp_path])
    assert data.train.images.shape == (22, 3, 16, 16)
    assert data.val.counts.tolist() == [1, 1]
    assert values(data.test) == [*range(12), *range(12)]


def test_a_truncated_archive_is_named(tmp_path):
    path = tmp_path / "cifar10" / "cifar10-jpeg.tar.xz"
    cifar_archive(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"cifar10-jpeg\.tar\.xz"):
        load_cifar10(16, [tmp_path])


def test_real_cifar10_has_its_parts(real_data):
    if not (real_data / "cifar10" / "cifar10-jpeg.tar.xz").exists():
        pytest.skip("cifar10/cifar10-jpeg.tar.xz is not under METAKM_DATA")
    parts = split_members(TarSource(real_data / "cifar10" / "cifar10-jpeg.tar.xz"))
    assert {split: {len(m) for m in members.values()} for split, members in parts.items()} == {
        "train": {4500},
        "val": {500},
        "test": {1000},
    }


def test_tiny_imagenets_meta_test_classes_make_a_problem(real_data):
    if not (real_data / "tiny-imagenet" / "tiny-imagenet-100.zip").exists():
        pytest.skip("tiny-imagenet/tiny-imagenet-100.zip is not under METAKM_DATA")
    data = load_tiny_imagenet_classes(2, 8, [real_data])
    assert data.class_names == tuple(split_classes()["test"][:2])
    assert [p.counts.tolist() for p in (data.train, data.val, data.test)] == [[396] * 2, [44] * 2, [110] * 2]
    assert data.train.image_shape == (3, 8, 8)
    assert data.train.images.std() > 30  # pictures, not blanks


@pytest.mark.parametrize("count", [1, 21])
def test_as_many_tiny_imagenet_classes_are_not_there(count, tmp_path):
    with pytest.raises(UserError, match="--classes"):
        load_tiny_imagenet_classes(count, 8, [tmp_path])


def aircraft(root):
    """FGVC-Aircraft as torchvision reads it."""
    data = root / "fgvc-aircraft-2013b" / "data"
    data.mkdir(parents=True)
    (data / "variants.txt").write_text("707-320\n727-200\n")
    number = 0
    for split, per_class in (("trainval", 12), ("test", 2)):
        lines = []
        for label in ("707-320", "727-200"):
            for _ in range(per_class):
                write(data / "images" / f"{number:07d}.jpg", number)
                lines.append(f"{number:07d} {label}\n")
                number += 1
        (data / f"images_variant_{split}.txt").write_text("".join(lines))


def test_aircraft_through_torchvision(tmp_path):
    aircraft(tmp_path)
    data = load_fine_grained("aircraft", 4, [tmp_path])
    assert [p.counts.tolist() for p in (data.train, data.val, data.test)] == [[11, 11], [1, 1], [2, 2]]
    np.testing.assert_allclose(values(data.test), [24, 25, 26, 27], atol=2)


@pytest.mark.parametrize("name", ["aircraft", "cars", "flowers", "food"])
def test_fine_grained_data_that_are_missing_are_named(tmp_path, name):
    with pytest.raises(UserError, match="download=True"):
        load_fine_grained(name, 4, [tmp_path])


@pytest.mark.parametrize(("name", "folder"), [("food", "food-101"), ("cars", "stanford_cars")])
def test_an_empty_folder_is_no_dataset(tmp_path, name, folder):
    (tmp_path / folder).mkdir()
    with pytest.raises(UserError, match="Expected torchvision's"):
        load_fine_grained(name, 4, [tmp_path])


def test_groceries_have_their_official_parts(tmp_path):
    write_files(tmp_path, grocery_files(each=13))  # 11 for training, 1 for validation, 1 for the test
    data = load_fine_grained("grocery-store", 4, [tmp_path])
    assert data.test.counts.tolist() == [1] * 81
    assert data.val.counts.tolist() == [1] * 81
    assert data.train.counts.tolist() == [11] * 81


def test_a_class_without_validation_images_gives_its_last_ones(tmp_path):
    files = grocery_files(each=13)
    lists = {name: files[name].decode().splitlines() for name in files if name.endswith(("train.txt", "val.txt"))}
    (train, opened), (val, held) = sorted(lists.items())
    moved = [line for line in held if line.split(",")[1].strip() == "7"]
    files[train] = "\n".join([*opened, *moved]).encode()
    files[val] = "\n".join(line for line in held if line not in moved).encode()
    write_files(tmp_path, files)
    data = load_fine_grained("grocery-store", 4, [tmp_path])
    assert data.val.counts.tolist() == [1] * 81
    assert data.train.counts.tolist() == [11] * 81
    write_files(tmp_path / "whole", grocery_files(each=13))
    whole = load_fine_grained("grocery-store", 4, [tmp_path / "whole"])
    np.testing.assert_array_equal(data.val.images[7], whole.val.images[7])  # which is the last one listed


def test_flowers_have_their_official_parts(tmp_path):
    write_files(tmp_path, flower_files(each=15))
    data = load_fine_grained("flowers", 4, [tmp_path])
    assert data.class_names == tuple(f"{label:04d}" for label in range(102))
    assert [{*part.counts.tolist()} for part in (data.train, data.val, data.test)] == [{5}, {5}, {5}]
    reds = np.repeat([2 * label for label in range(1, 103)], 5)
    np.testing.assert_allclose(data.test.images[:, 0].mean((1, 2)), reds, atol=3)


def test_take_keeps_the_first_of_each_class(flat):
    train = load_image_folder(flat, side=4).train
    few = first_per_class(train, 3)
    assert values(few) == values(train)[:3] + values(train)[14:17]
    assert few.counts.tolist() == [3, 3]


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own(flat):
    batches = Batches([load_image_folder(flat, side=4).train], batch=7, seed=0, augmentation="none", size=4)
    assert batches.per_epoch == 4
    epochs = [[batches.training(4 * e + i) for i in range(4)] for e in range(2)]
    for batch_list in epochs:
        assert torch.cat([b.labels for b in batch_list]).sum() == 14
    first, second = (torch.cat([b.images[:, 0, 0, 0] for b in batch_list]) for batch_list in epochs)
    assert not torch.equal(first, second)
    torch.testing.assert_close(first.sort().values, second.sort().values)


def test_batches_of_two_parts_show_the_images_of_both(flat):
    data = load_image_folder(flat, side=4)
    both = Batches([data.train, data.val], batch=1, seed=0, augmentation="none", size=4)
    shown = [both.training(i) for i in range(both.per_epoch)]
    alone = [Batches([part], batch=1, seed=0, augmentation="none", size=4) for part in (data.train, data.val)]
    wanted = [(int(b.labels), b.images) for part in alone for b in map(part.sequential, range(len(part.labels)))]
    assert len(shown) == len(wanted)
    for label, image in wanted:
        assert any(int(b.labels) == label and torch.equal(b.images, image) for b in shown)


def test_a_batch_depends_on_seed_and_iteration_alone(flat):
    train = load_image_folder(flat, side=8).train

    def batch(seed, iteration, before=()):
        batches = Batches([train], batch=7, seed=seed, augmentation="pad-crop", size=8)
        for other in before:
            batches.training(other)
        return batches.training(iteration).images

    assert torch.equal(batch(0, 5), batch(0, 5, before=(0, 9, 2)))
    assert not torch.equal(batch(0, 5), batch(1, 5))


def test_pad_crop_shifts_and_flips():
    image = torch.arange(64.0).view(1, 1, 8, 8)
    still = pad_crop(image, torch.tensor([[0.5, 0.5, 0.9]]))
    assert torch.equal(still, image)
    flipped = pad_crop(image, torch.tensor([[0.5, 0.5, 0.1]]))
    assert torch.equal(flipped, image.flip(3))
    shifted = pad_crop(image, torch.tensor([[0.0, 0.99, 0.9]]))  # the window one up and one to the right
    assert torch.equal(shifted[0, 0, 1:, :-1], image[0, 0, :-1, 1:])
    assert shifted[0, 0, 0].abs().sum() == 0
    assert shifted[0, 0, :, -1].abs().sum() == 0


def test_resized_crop_of_the_whole_is_a_plain_resize():
    image = torch.rand(1, 3, 8, 8)
    whole = torch.tensor([[0.9999999999, 0.5, 0.3, 0.7]])  # all of the area, square, not flipped
    wanted = torch.nn.functional.interpolate(image, size=(6, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(resized_crop(image, whole, 6), wanted, atol=1e-6, rtol=0)
    flipped = torch.tensor([[0.4999999999, 0.5, 0.3, 0.7]])
    torch.testing.assert_close(resized_crop(image, flipped, 6), wanted.flip(3), atol=1e-6, rtol=0)


def test_a_resized_crop_stays_within_the_image():
    image = torch.ones(50, 1, 8, 8)
    generator = torch.Generator().manual_seed(0)
    crops = resized_crop(image, torch.rand(50, 4, generator=generator), 8)
    torch.testing.assert_close(crops, torch.ones(50, 1, 8, 8))
    ramp = torch.linspace(0, 1, 8).expand(50, 1, 8, 8)
    widths = (crops_of := resized_crop(ramp, torch.rand(50, 4, generator=generator), 8)).amax(3) - crops_of.amin(3)
    assert 0.2 < widths.min() < 0.7
    assert widths.max() <= 1


def test_a_folder_unpacked_into_one_of_its_name_and_a_servers_thumbnails_change_nothing(flat, tmp_path):
    before = load_image_folder(flat, side=4)
    (tmp_path / "nested").mkdir()
    flat.rename(tmp_path / "nested" / "pets")
    (tmp_path / "nested").rename(flat)
    write(flat / "@eaDir" / "pets" / "thumbnail.jpg", 7)
    write(flat / "pets" / "kind0" / "@eaDir" / "00.png" / "thumbnail.jpg", 7)
    after = load_image_folder(str(flat), side=4)
    assert np.array_equal(after.train.images, before.train.images)
    assert after.class_names == before.class_names

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metakm.data import EpisodeSampler, load_dataset
from metakm.data.archives import FolderSource
from metakm.errors import UserError

LAYOUT = {"train": {"robin": 3, "wren": 2}, "val": {"coot": 2}, "test": {"teal": 2}}


def picture(path: Path, level: int, size: tuple[int, int] = (40, 30), mode: str = "RGB", **save: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = level if mode == "L" else (level, 0, 255 - level)
    Image.new(mode, size, colour).save(path, **save)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Class folders with images of red levels 10, 20, ..., one of them nested, and files that are no images."""
    for split, classes in LAYOUT.items():
        for name, count in classes.items():
            for i in range(count):
                below = "more/deeper/" if i == 1 else ""
                picture(tmp_path / split / name / f"{below}{i}.png", 10 * (i + 1))
        (tmp_path / split / "readme.txt").write_text("not a class")
    (tmp_path / "train" / "robin" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "robin" / "._0.png").write_bytes(b"left by another file system")
    (tmp_path / "train" / ".thumbnails").mkdir()
    return tmp_path


def test_classes_are_folders_and_other_files_are_left_alone(root: Path) -> None:
    for split, classes in LAYOUT.items():
        found = load_dataset("folder", split, root=root)
        assert (found.name, found.split, found.rotations) == ("folder", split, False)
        assert found.class_names == tuple(sorted(classes))
        assert found.counts.tolist() == [classes[name] for name in sorted(classes)]
        assert found.image_shape == (3, 84, 84)
    found = load_dataset("folder", "train", root=root)
    assert found.images[:, 0, 0, 0].tolist() == [10, 30, 20, 10, 20]  # by name: 0.png, 2.png, more/deeper/1.png
    assert found.images[:, 2, 0, 0].tolist() == [245, 225, 235, 245, 235]


def test_links_to_folders_elsewhere_are_followed_and_no_image_comes_twice(root: Path) -> None:
    split, pool = root / "train", root / "pool"
    picture(pool / "deeper" / "0.png", 40)
    (split / "finch").symlink_to(pool)
    (split / "wren" / "more pictures").symlink_to(pool)
    (pool / "back").symlink_to(pool)  # and from here on links that no image is to be found by
    (pool / "deeper" / "top").symlink_to(root)
    (split / "finches").symlink_to(split)
    (split / "robin" / "best").symlink_to(split / "robin" / "more")
    (split / "robin" / "all").symlink_to(root)
    (split / "robin" / ".#0.png").symlink_to("nobody@nowhere:1")  # an editor's
    (split / "robin" / "notes").symlink_to("nowhere")
    names = [name for name in FolderSource(split).names() if name.endswith(".png")]
    assert names == [
        "train/finch/deeper/0.png",
        *(f"train/robin/{name}.png" for name in ("0", "2", "more/deeper/1")),
        *(f"train/wren/{name}.png" for name in ("0", "more pictures/deeper/0", "more/deeper/1")),
    ]
    with pytest.raises(UserError, match="none in finches"):
        load_dataset("folder", "train", root=root)
    (split / "finches").unlink()
    found = load_dataset("folder", "train", root=root)
    assert found.class_names == ("finch", "robin", "wren")
    assert found.counts.tolist() == [1, 3, 3]
    (split / "robin" / "lost.png").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"lost\.png"):
        load_dataset("folder", "train", root=root)


def test_the_size_can_be_chosen_and_is_kept_apart_in_the_cache(root: Path) -> None:
    shapes = [load_dataset("folder", "val", root=root, image_size=size).image_shape for size in (0, 32, 84, 32)]
    assert shapes == [(3, 84, 84), (3, 32, 32), (3, 84, 84), (3, 32, 32)]
    with pytest.raises(UserError, match=r"a whole number of pixels, got 32\.0"):
        load_dataset("folder", "val", root=root, image_size=32.0)  # type: ignore[arg-type]


def test_other_datasets_keep_their_size() -> None:
    with pytest.raises(UserError, match=r"with glyphs, got 32; only .*folder, .* can be resized"):
        load_dataset("glyphs", "val", image_size=32)


def test_a_changed_file_is_decoded_again(root: Path) -> None:
    before = load_dataset("folder", "val", root=root).images[0, 0, 0, 0]
    picture(root / "val" / "coot" / "0.png", 200, size=(41, 31))
    assert (before, load_dataset("folder", "val", root=root).images[0, 0, 0, 0]) == (10, 200)


def test_grey_palette_and_turned_images_become_upright_rgb(root: Path) -> None:
    folder = root / "val" / "coot"
    picture(folder / "grey.PNG", 77, mode="L")
    Image.new("P", (9, 9), 0).save(folder / "palette.png")
    turned = Image.new("RGB", (20, 10), (255, 255, 255))
    turned.paste((0, 0, 0), (0, 0, 10, 10))  # dark on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise, dark on top
    turned.save(folder / "photo.jpg", exif=exif, quality=95)
    images = load_dataset("folder", "val", root=root, image_size=32).images  # 0, grey, more/deeper/1, palette, photo
    assert (images[1] == 77).all()
    assert (images[3] == 0).all()
    assert images[4, :, 2:14].max() < 20
    assert images[4, :, 18:30].min() > 235


def truncated() -> bytes:
    out = io.BytesIO()
    Image.effect_noise((60, 60), 80).convert("RGB").save(out, "PNG")
    return out.getvalue()[:2000]


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>", truncated()], ids=["empty", "html", "truncated"])
def test_an_image_that_cannot_be_read_is_named(root: Path, data: bytes) -> None:
    (root / "test" / "teal" / "broken.png").write_bytes(data)
    with pytest.raises(UserError, match=r"teal/broken\.png") as caught:
        load_dataset("folder", "test", root=root)
    assert "Expected an image" in str(caught.value)
    assert load_dataset("folder", "train", root=root).n_classes == 2, "other splits are not decoded for it"


def remove(path: Path) -> None:
    for file in sorted(path.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()


def rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda root: (root / old).rename(root / new)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (rename("val", "valid"), "Expected folders train, val and test in .*--data-root.*--dataset glyphs"),
        (rename("test/teal", "test/robin"), "every class in one split, got 'robin' in train and test of"),
        (lambda root: remove(root / "val" / "coot"), "folder of images for each class in .*val, got none in coot"),
        (lambda root: remove(root / "val"), "folder of images for each class in .*val, got no folder"),
    ],
)
def test_a_folder_of_another_layout_is_refused(root: Path, spoil: Callable[[Path], object], said: str) -> None:
    spoil(root)
    with pytest.raises(UserError, match=said):
        load_dataset("folder", "train", root=root)


def test_too_few_classes_or_images_are_named(root: Path) -> None:
    train = load_dataset("folder", "train", root=root)
    with pytest.raises(UserError, match=r"at most 2 ways \(the classes of folder train\), got 5"):
        EpisodeSampler(train, ways=5, shots=1, queries=1)
    with pytest.raises(
        UserError, match=r"shots \+ queries <= 2 \(the smallest class of folder train: wren\), got 1 \+ 2"
    ):
        EpisodeSampler(train, ways=2, shots=1, queries=2)


def test_episodes_can_be_drawn(root: Path) -> None:
    episodes = EpisodeSampler(load_dataset("folder", "train", root=root), ways=2, shots=1, queries=1).batch(0, 3)
    assert episodes.support_images.shape == (3, 2, 3, 84, 84)
    assert np.isclose(episodes.support_images[:, :, 0] + episodes.support_images[:, :, 2], 1).all()


SYSTEM_FOLDERS = ("@eaDir", "@Recycle", "#recycle", "#snapshot", "$RECYCLE.BIN", "__MACOSX", "lost+found")


@pytest.mark.parametrize("name", SYSTEM_FOLDERS)
def test_what_servers_and_systems_leave_among_the_images_is_no_data(root: Path, name: str) -> None:
    before = load_dataset("folder", "train", root=root)
    for place in ("train", "train/robin", "train/robin/more"):
        picture(root / place / name / "0.png" / "SYNOPHOTO_THUMB_XL.jpg", 200)
        picture(root / place / name / "1.png", 200)
    found = load_dataset("folder", "train", root=root)
    assert (found.class_names, found.counts.tolist()) == (before.class_names, before.counts.tolist())
    assert np.array_equal(found.images, before.images)
    assert found.split_hash == before.split_hash


def test_splits_unpacked_into_folders_of_their_names_are_read(root: Path) -> None:
    before = load_dataset("folder", "train", root=root)
    for split in LAYOUT:
        (root / split).rename(root / "unpacked")
        (root / split).mkdir()
        (root / "unpacked").rename(root / split / split)
        (root / split / "Thumbs.db").write_bytes(b"left by a system")
    found = load_dataset("folder", "train", root=root)
    assert np.array_equal(found.images, before.images)
    assert found.split_hash == before.split_hash


def test_a_class_may_be_called_as_its_split(root: Path) -> None:
    picture(root / "train" / "train" / "0.png", 10)  # a locomotive
    assert load_dataset("folder", "train", root=root).class_names == ("robin", "train", "wren")

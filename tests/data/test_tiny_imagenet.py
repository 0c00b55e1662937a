import io
import zipfile
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metakm.data import load_dataset, tiny_imagenet
from metakm.data.archives import ZipSource
from metakm.errors import UserError

SPLIT = {"train": ["n02", "n04"], "val": ["n01"], "test": ["n03"]}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make Tiny ImageNet one of four classes by four images."""
    monkeypatch.setattr(tiny_imagenet, "split_classes", lambda: SPLIT)
    monkeypatch.setattr(tiny_imagenet, "PER_CLASS", 4)


def jpeg(level: int, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (64, 64), level if mode == "L" else (level, 255 - level, 40)).save(out, "JPEG", quality=95)
    return out.getvalue()


def files() -> dict[str, bytes]:
    """Class n0c has training images of levels 20c and 20c + 1, validation images of 20c + 14 and 20c + 10."""
    made = {"tiny-imagenet-200/wnids.txt": b"n01\n"}
    lines = []
    for c in range(1, 6):  # n05 is in no split
        for i in range(2):
            made[f"tiny-imagenet-200/train/n0{c}/images/n0{c}_{i}.JPEG"] = jpeg(20 * c + i, "L" if i else "RGB")
        made[f"tiny-imagenet-200/train/n0{c}/n0{c}_boxes.txt"] = b""
        for i in range(2):
            made[f"tiny-imagenet-200/val/images/val_{9 - i}{c}.JPEG"] = jpeg(20 * c + 10 + 4 * i)
            lines.append(f"val_{9 - i}{c}.JPEG\tn0{c}\t0\t0\t62\t62")
    made["tiny-imagenet-200/val/val_annotations.txt"] = "\n".join(lines).encode()
    return made


def write(into: Path, members: dict[str, bytes], name: str | None = "tiny-imagenet-200.zip") -> None:
    into.mkdir(parents=True, exist_ok=True)
    if name is None:
        for member, data in members.items():
            (into / member).parent.mkdir(parents=True, exist_ok=True)
            (into / member).write_bytes(data)
        return
    with zipfile.ZipFile(into / name, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)


@pytest.mark.usefixtures("small")
def test_zip_and_folder_give_the_same_arrays(tmp_path: Path) -> None:
    write(tmp_path / "a", files())
    write(tmp_path / "b" / "tiny-imagenet", files(), "tiny-imagenet-100.zip")
    write(tmp_path / "c" / "tiny-imagenet", files(), None)
    marked = {n: b"\xef\xbb\xbf" + data if n.endswith("annotations.txt") else data for n, data in files().items()}
    write(tmp_path / "d" / "tiny-imagenet-200", marked, None)  # unpacked into a folder of its name, a table resaved
    for split, names in SPLIT.items():
        first = load_dataset("tiny-imagenet", split, root=tmp_path / "a")
        assert first.class_names == tuple(names)
        assert first.images.shape == (4 * len(names), 3, 84, 84)
        assert not first.rotations
        levels = first.images[:, 0].mean(axis=(1, 2))  # red: training images by name, then validation images
        expected = [20 * int(name[1:]) + extra for name in names for extra in (0, 1, 14, 10)]
        assert np.allclose(levels, expected, atol=2)
        assert np.allclose(first.images[0, 1], 255 - expected[0], atol=2)  # green: channels first, in RGB order
        assert np.array_equal(first.images[1, 0], first.images[1, 2])  # a grey JPEG has three equal channels
        for root in "bcd":
            other = load_dataset("tiny-imagenet", split, root=tmp_path / root)
            assert np.array_equal(other.images, first.images)
            assert other.split_hash == first.split_hash


@pytest.mark.usefixtures("small")
def test_only_the_split_asked_for_is_decoded(tmp_path: Path) -> None:
    broken = {**files(), "tiny-imagenet-200/train/n03/images/n03_0.JPEG": b"no image"}
    write(tmp_path, broken)
    assert load_dataset("tiny-imagenet", "train", root=tmp_path).n_classes == 2
    with pytest.raises(UserError, match=r"tiny-imagenet-200\.zip: .*n03_0\.JPEG"):
        load_dataset("tiny-imagenet", "test", root=tmp_path)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        ("tiny-imagenet-200/train/n04/images/n04_1.JPEG", "Expected 4 images of class n04, got 3"),
        ("tiny-imagenet-200/val/images/val_81.JPEG", "Expected 4 images of class n01, got 3"),
        ("tiny-imagenet-200/val/val_annotations.txt", "Expected .*val_annotations.txt in"),
    ],
)
def test_an_incomplete_archive_is_refused(tmp_path: Path, left_out: str, said: str) -> None:
    made = files()
    del made[left_out]
    write(tmp_path, made)
    with pytest.raises(UserError, match=said):
        load_dataset("tiny-imagenet", "train", root=tmp_path)


def test_missing_data_say_what_where_and_how(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_dataset("tiny-imagenet", root=tmp_path)
    for part in ("tiny-imagenet-200.zip", str(tmp_path / "tiny-imagenet"), "cs231n", "--dataset glyphs"):
        assert part in str(caught.value)


def test_the_shipped_split_is_64_16_20_different_classes() -> None:
    divided = tiny_imagenet.split_classes()
    assert {split: len(names) for split, names in divided.items()} == {"train": 64, "val": 16, "test": 20}
    assert len(set(chain.from_iterable(divided.values()))) == 100


def test_real_tiny_imagenet_holds_every_class_whole(real_data: Path) -> None:
    path = real_data / "tiny-imagenet" / "tiny-imagenet-100.zip"
    if not path.exists():
        pytest.skip("tiny-imagenet/tiny-imagenet-100.zip is not under METAKM_DATA")
    plan = tiny_imagenet._plan("val", ZipSource(path))
    assert plan.classes["val"] == [(name, 550) for name in tiny_imagenet.split_classes()["val"]]
    first = next(plan.arrays())
    assert first.shape == (550, 3, 84, 84)
    assert first.dtype == np.uint8
    assert 60 < first.mean() < 190
    assert first.std() > 30

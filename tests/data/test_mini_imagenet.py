import io
import logging
import pickle
import tarfile
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metakm.data import load_dataset, mini_imagenet, tar_stream
from metakm.data.archives import TarSource
from metakm.data.splits import split_hash
from metakm.errors import UserError

CLASSES = {"train": {"n02": 3, "n01": 2}, "val": {"n03": 2}, "test": {"n05": 1, "n04": 4}}
SPLITS = tuple(CLASSES)


def levels(split: str) -> list[tuple[str, int]]:
    """Class and grey level of each image, the classes interleaved."""
    numbers = [(i, name) for name, count in CLASSES[split].items() for i in range(count)]
    return [(name, 40 * int(name[1:]) + 10 * i) for i, name in sorted(numbers)]


def write_tables(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    for split in SPLITS:
        lines = ["filename,label"]
        for name, level in levels(split):
            Image.new("RGB", (120, 90), (level, 0, 0)).save(folder / "images" / f"{name}{level:08}.jpg")
            lines.append(f"{name}{level:08}.jpg,{name}")
        (folder / f"{split}.csv").write_text("\n".join(lines))


ARCHIVES = {"mini-imagenet-train.tar.xz": ("train",), "mini-imagenet-val-test.tar.xz": ("val", "test")}


def write_archives(folder: Path, files: Path, **other: bytes | None) -> None:
    """Pack the files of `write_tables` as the two archives; `other` replaces or drops files by their stems."""
    folder.mkdir(parents=True, exist_ok=True)
    for archive, splits in ARCHIVES.items():
        names = [f"{split}.csv" for split in SPLITS]
        names += [f"images/{name}{level:08}.jpg" for split in splits for name, level in levels(split)]
        with tarfile.open(folder / archive, "w:xz") as tar:
            for name in reversed(names):
                data = other.get(Path(name).stem, (files / name).read_bytes())
                if data is not None:
                    info = tarfile.TarInfo(f"mini-imagenet/{name}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def content(split: str) -> dict[str, Any]:
    images = np.zeros((len(levels(split)), 84, 84, 3), np.uint8)
    rows: dict[str, list[int]] = {}
    for row, (name, level) in enumerate(levels(split)):
        images[row, ..., 0] = level
        rows.setdefault(name, []).append(row)
    return {"image_data": images, "class_dict": rows}


def write_pickles(folder: Path, protocol: int = 4, **other: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        data = pickle.dumps(other.get(split, content(split)), protocol=protocol)
        (folder / f"mini-imagenet-cache-{split}.pkl").write_bytes(data)


def check(root: Path) -> str:
    for split in SPLITS:
        found = load_dataset("mini-imagenet", split, root=root)
        expected = sorted(levels(split))
        assert found.class_names == tuple(sorted(CLASSES[split]))
        assert found.counts.tolist() == [CLASSES[split][name] for name in found.class_names]
        assert found.images.shape == (len(expected), 3, 84, 84)
        assert np.allclose(found.images[:, 0].mean(axis=(1, 2)), [level for _, level in expected], atol=2)
        assert found.images[:, 1:].max() <= 2  # channels first, red first
        assert not found.rotations
    return found.split_hash


def test_tables_and_pickles_of_every_protocol_give_the_same_classes(tmp_path: Path) -> None:
    write_tables(tmp_path / "a" / "mini-imagenet")
    write_tables(tmp_path / "b")
    hashes = {check(tmp_path / "a"), check(tmp_path / "b")}
    for protocol in range(2, 6):
        write_pickles(tmp_path / str(protocol) / "mini-imagenet", protocol)
        hashes.add(check(tmp_path / str(protocol)))
    assert len(hashes) == 1


def test_all_forms_are_resized_alike(tmp_path: Path) -> None:
    write_tables(tmp_path / "files")
    write_archives(tmp_path / "packed", tmp_path / "files")
    write_pickles(tmp_path / "pickles")
    for name in ("files", "packed", "pickles"):
        large, usual = (load_dataset("mini-imagenet", "val", root=tmp_path / name, image_size=side) for side in (96, 0))
        assert large.images.shape == (len(usual.images), 3, 96, 96)
        assert large.split_hash == usual.split_hash
        assert np.allclose(large.images.mean(axis=(2, 3)), usual.images.mean(axis=(2, 3)), atol=2)


def test_the_archives_hold_the_same_images_in_the_tables_order(tmp_path: Path) -> None:
    write_tables(tmp_path / "files")
    write_archives(tmp_path / "packed" / "mini-imagenet", tmp_path / "files")
    assert check(tmp_path / "packed") == check(tmp_path / "files")
    for split in SPLITS:
        packed, files = (load_dataset("mini-imagenet", split, root=tmp_path / name) for name in ("packed", "files"))
        assert np.array_equal(packed.images, files.images)
        assert isinstance(packed.images, np.memmap)


def test_an_archive_is_unpacked_once_for_all_its_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tables(tmp_path / "files")
    write_archives(tmp_path, tmp_path / "files")
    unpacked, reader = [], TarSource.reader
    monkeypatch.setattr(TarSource, "reader", lambda self: (unpacked.append(self.path.name), reader(self))[1])
    for split in (*SPLITS, *SPLITS):
        load_dataset("mini-imagenet", split, root=tmp_path)
    assert unpacked == list(ARCHIVES)


@pytest.mark.parametrize("absent", list(ARCHIVES))
def test_an_archive_without_the_other_is_named(tmp_path: Path, absent: str) -> None:
    write_tables(tmp_path / "files")
    write_archives(tmp_path, tmp_path / "files")
    (tmp_path / absent).unlink()
    with pytest.raises(UserError, match=rf"Expected {absent} beside .*mini-imagenet-[a-z-]*\.tar\.xz, got none"):
        load_dataset("mini-imagenet", root=tmp_path)


@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_a_truncated_archive_is_named(tmp_path: Path, keep: float, cache: Path) -> None:
    write_tables(tmp_path / "files")
    write_archives(tmp_path, tmp_path / "files")
    path = tmp_path / "mini-imagenet-val-test.tar.xz"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(UserError, match=r"readable file, got .* from .*mini-imagenet-val-test\.tar\.xz; fetch it"):
        load_dataset("mini-imagenet", "test", root=tmp_path)
    assert not [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"n0200000080": None}, r"got no mini-imagenet/images/n0200000080\.jpg in .*train\.tar\.xz"),
        ({"val": None}, r"Expected mini-imagenet/val\.csv in .*train\.tar\.xz, got none"),
        ({"val": b"filename,label\nn0200000080.jpg,n02"}, "every class in one split, got 'n02' in train and val"),
        ({"n0200000080": b"no image"}, r"Expected an image, got .*train\.tar\.xz: mini-imagenet/images/n0200000080"),
    ],
)
def test_archives_without_what_the_tables_promise_are_refused(
    tmp_path: Path, other: Mapping[str, bytes | None], said: str
) -> None:
    write_tables(tmp_path / "files")
    write_archives(tmp_path, tmp_path / "files", **other)
    with pytest.raises(UserError, match=said):
        load_dataset("mini-imagenet", root=tmp_path)


def test_archives_with_different_tables_are_refused(tmp_path: Path) -> None:
    write_tables(tmp_path / "files")
    write_archives(tmp_path / "other", tmp_path / "files", val=b"filename,label\na.jpg,n03")
    write_archives(tmp_path, tmp_path / "files")
    (tmp_path / "other" / "mini-imagenet-train.tar.xz").replace(tmp_path / "mini-imagenet-train.tar.xz")
    with pytest.raises(UserError, match=r"Expected the same tables in .*train.* and .*val-test"):
        load_dataset("mini-imagenet", root=tmp_path)


def test_a_link_in_an_archive_leads_nowhere_and_nothing_is_extracted(tmp_path: Path) -> None:
    write_tables(tmp_path / "files")
    secret = tmp_path / "secret.jpg"
    Image.new("RGB", (84, 84)).save(secret)
    write_archives(tmp_path, tmp_path / "files", n0200000080=None)
    with tarfile.open(tmp_path / "mini-imagenet-train.tar.xz", "r:xz") as old:
        files = [(info, old.extractfile(info).read()) for info in old]  # type: ignore[union-attr]
    with tarfile.open(tmp_path / "mini-imagenet-train.tar.xz", "w:xz") as tar:
        for info, data in files:
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("mini-imagenet/images/n0200000080.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
        outside = tarfile.TarInfo("../outside.jpg")
        tar.addfile(outside)
    with pytest.raises(UserError, match=r"got no mini-imagenet/images/n0200000080\.jpg"):
        load_dataset("mini-imagenet", root=tmp_path)
    assert not list(tmp_path.parent.rglob("outside.jpg"))


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tables(tmp_path / "files")
    write_archives(tmp_path, tmp_path / "files", more=None)
    monkeypatch.setattr(tar_stream, "LARGEST_ARCHIVE", 4096)
    with pytest.raises(UserError, match=r"at most 4096 bytes, got more from .*mini-imagenet-train\.tar\.xz"):
        load_dataset("mini-imagenet", root=tmp_path)


def test_the_identical_images_of_the_published_data_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_tables(tmp_path)
    load_dataset("mini-imagenet", root=tmp_path / ".")
    assert not caplog.records
    (tmp_path / "again").mkdir()
    write_archives(tmp_path / "again", tmp_path)
    monkeypatch.setattr(mini_imagenet, "PUBLISHED", load_dataset("mini-imagenet", root=tmp_path).split_hash)
    for split in (*SPLITS, *SPLITS):
        load_dataset("mini-imagenet", split, root=tmp_path / "again")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "8 pairs of byte-identical images, 7 of them across classes" in caplog.text


def test_the_real_archives_are_the_published_split(real_data: Path) -> None:
    """Their tables only; decoding takes most of a minute."""
    found = [TarSource(real_data / "mini-imagenet" / name) for name in ARCHIVES]
    if not all(source.path.exists() for source in found):
        pytest.skip("the archives of mini-imagenet/ are not under METAKM_DATA")
    plan = mini_imagenet._plan_archives("val", 84, {source.path.name: source for source in found})
    assert {key: (len(own), {count for _, count in own}) for key, own in plan.classes.items()} == {
        "train": (64, {600}),
        "val": (16, {600}),
        "test": (20, {600}),
    }
    assert split_hash(plan.classes) == mini_imagenet.PUBLISHED
    assert plan.also == ("test",)


def test_a_pickle_with_numpy_1_or_python_2_names_is_read(tmp_path: Path) -> None:
    write_pickles(tmp_path, 2)
    changed = 0
    for path in tmp_path.glob("*.pkl"):
        data = path.read_bytes()
        changed += b"numpy._core.multiarray\n" in data
        path.write_bytes(data.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"))
    assert changed == 3 or np.__version__ < "2"
    check(tmp_path)


class Evil:
    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call, self.args


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_pickle_that_calls_anything_else_is_refused_unrun(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "ran"
    evil = {**content("val"), "more": Evil(Path.mkdir, mark)}
    write_pickles(tmp_path, protocol, val=evil)
    with pytest.raises(UserError, match=r"got one that calls .*mini-imagenet-cache-val\.pkl"):
        load_dataset("mini-imagenet", root=tmp_path)
    assert not mark.exists()


def test_the_forbidden_global_is_named(tmp_path: Path) -> None:
    write_pickles(tmp_path, val=Evil(eval, "1/0"))
    with pytest.raises(UserError, match=r"calls builtins\.eval"):
        load_dataset("mini-imagenet", root=tmp_path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([1, 2], "Expected a dict"),
        ({"image_data": np.zeros((1, 84, 84, 3), np.uint8)}, "KeyError"),
        ({"image_data": np.zeros((1, 84, 84, 3)), "class_dict": {"a": [0]}}, "float64"),
        ({"image_data": np.zeros((1, 32, 32, 3), np.uint8), "class_dict": {"a": [0]}}, r"\[1, 32, 32, 3\]"),
        ({"image_data": np.zeros((1, 84, 84, 3), np.uint8), "class_dict": {"a": [1]}}, r"outside 0\.\.0"),
        ({"image_data": np.zeros((1, 84, 84, 3), np.uint8), "class_dict": {"a": []}}, r"outside 0\.\.0"),
        ({"image_data": np.zeros((2, 84, 84, 3), np.uint8), "class_dict": {"a": [0, 1], "b": [1]}}, "a row twice"),
    ],
)
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, data: Any, said: str) -> None:
    write_pickles(tmp_path, test=data)
    with pytest.raises(UserError, match=f"{said}.*") as caught:
        load_dataset("mini-imagenet", root=tmp_path)
    assert "mini-imagenet-cache-test.pkl" in str(caught.value)


def test_a_truncated_pickle_is_refused(tmp_path: Path) -> None:
    write_pickles(tmp_path)
    path = tmp_path / "mini-imagenet-cache-train.pkl"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"whole pickle, got .*cache-train\.pkl"):
        load_dataset("mini-imagenet", root=tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,class\na.jpg,n01\n", r"columns filename and label, got KeyError.*train\.csv"),
        ("filename,label\na.jpg\n", r"a file name and a label, got 'a.jpg', None in .*train\.csv"),
        ("filename,label\n../../etc/passwd,n01\n", r"got '\.\./\.\./etc/passwd'"),
        ("filename,label\nabsent.jpg,n01\n", r"readable file, got .*absent\.jpg"),
    ],
)
def test_a_table_that_is_wrong_is_refused(tmp_path: Path, text: str, said: str) -> None:
    write_tables(tmp_path)
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        load_dataset("mini-imagenet", root=tmp_path)


def test_a_class_in_two_splits_is_refused(tmp_path: Path) -> None:
    """Meta-test classes must be unseen."""
    write_tables(tmp_path / "a")
    (tmp_path / "a" / "test.csv").write_bytes((tmp_path / "a" / "val.csv").read_bytes())
    write_pickles(tmp_path / "b", test=content("val"))
    for name in ("a", "b"):
        with pytest.raises(UserError, match="every class in one split, got 'n03' in val and test of"):
            load_dataset("mini-imagenet", root=tmp_path / name)


def test_an_image_listed_twice_is_refused(tmp_path: Path) -> None:
    """It could be support and query of one episode."""
    write_tables(tmp_path)
    table = tmp_path / "train.csv"
    table.write_text("\n".join([*table.read_text().splitlines(), table.read_text().splitlines()[-1]]))
    with pytest.raises(UserError, match=r"every image once in .*train\.csv.*, got images/n02\d+\.jpg twice"):
        load_dataset("mini-imagenet", root=tmp_path)


def test_missing_data_say_what_where_and_how(tmp_path: Path) -> None:
    write_tables(tmp_path / "mini-imagenet")
    (tmp_path / "mini-imagenet" / "val.csv").unlink()
    with pytest.raises(UserError) as caught:
        load_dataset("mini-imagenet", root=tmp_path)
    for part in ("val.csv", "mini-imagenet-cache-", str(tmp_path), "METAKM_DATA", "--dataset glyphs"):
        assert part in str(caught.value)


def harmless(data: dict[str, Any], form: str) -> dict[str, Any]:
    """The same content as numpy, `collections` or an older Python would have left it in the pickle."""
    rows = data["class_dict"]
    changed: dict[str, Any] = {
        "numbers of numpy": {name: list(np.array(own)) for name, own in rows.items()},
        "names of numpy": {np.str_(name): np.array(own) for name, own in rows.items()},
        "OrderedDict": OrderedDict(rows),
        "defaultdict": defaultdict(list, rows),
        "sets": {name: set(own) for name, own in rows.items()},
        "bytes": {name.encode(): own for name, own in rows.items()},
    }
    if form == "bytes":
        return {b"image_data": data["image_data"], b"class_dict": changed[form]}
    return {"image_data": data["image_data"], "class_dict": changed[form]}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("form", ["numbers of numpy", "names of numpy", "OrderedDict", "defaultdict", "sets", "bytes"])
def test_harmless_forms_of_the_content_are_read_alike(tmp_path: Path, form: str, protocol: int) -> None:
    write_pickles(tmp_path, protocol, **{split: harmless(content(split), form) for split in SPLITS})
    check(tmp_path)


def test_tables_saved_by_excel_and_images_unpacked_into_a_folder_of_their_name_are_read(tmp_path: Path) -> None:
    write_tables(tmp_path)
    (tmp_path / "images").rename(tmp_path / "unpacked")
    (tmp_path / "images").mkdir()
    (tmp_path / "unpacked").rename(tmp_path / "images" / "images")
    for split in SPLITS:
        path = tmp_path / f"{split}.csv"
        path.write_text(path.read_text().replace("\n", "\r\n"), encoding="utf-8-sig")
    check(tmp_path)

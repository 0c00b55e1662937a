import shutil
import urllib.error
import urllib.request
import zipfile
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image
from test_pinned_episodes import PINS, pins

from metakm.data import EpisodeSampler, FewShotDataset, load_dataset, omniglot
from metakm.errors import UserError

Splits = dict[str, FewShotDataset]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make Omniglot one of six characters by two drawers."""
    monkeypatch.setattr(omniglot, "SIZES", {"train": 3, "val": 1, "test": 2})
    monkeypatch.setattr(omniglot, "DRAWERS", 2)


def write_characters(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for part, alphabet in (("images_background", "Aleph"), ("images_evaluation", "Beth")):
        for character in range(1, 4):
            for drawer in range(1, 3):
                path = folder / part / alphabet / f"character{character:02}" / f"{character:04}_{drawer:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.random((105, 105)) > 0.2).save(path)


def pack(folder: Path, part: str, into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(into / f"{part}.zip", "w") as archive:
        for path in sorted((folder / part).rglob("*.png"), reverse=True):
            archive.write(path, path.relative_to(folder).as_posix())
        archive.writestr(f"__MACOSX/{part}/Aleph/character01/._0001_01.png", b"junk")
        archive.writestr(f"{part}/Aleph/character01/.DS_Store", b"junk")


def load_all(root: Path) -> None:
    for split in omniglot.SIZES:
        load_dataset("omniglot", split, root=root)


def test_real_omniglot_has_its_characters_and_split(omniglot: Splits) -> None:
    assert {split: d.n_classes for split, d in omniglot.items()} == {"train": 1100, "val": 100, "test": 423}
    names = {name for d in omniglot.values() for name in d.class_names}
    assert len(names) == 1623
    assert len({name.split("/")[0] for name in names}) == 50
    for split, dataset in omniglot.items():
        assert dataset.images.shape == (20 * dataset.n_classes, 1, 28, 28)
        assert (dataset.counts == 20).all()
        assert dataset.rotations
        assert dataset.split == split
        assert dataset.split_hash == "9a1be5b8f4984043"
        assert list(dataset.class_names) == sorted(dataset.class_names)


def test_real_omniglot_draws_what_is_pinned(omniglot: Splits) -> None:
    assert pins(omniglot["train"])[0] == PINS["omniglot"][0]


def test_real_omniglot_is_inverted_upright_and_of_the_right_character(omniglot: Splits, real_data: Path) -> None:
    where = {name: (d, i) for d in omniglot.values() for i, name in enumerate(d.class_names)}
    dataset, index = where["Latin/character12"]
    with zipfile.ZipFile(real_data / "omniglot" / "images_background.zip") as archive:
        members = sorted(n for n in archive.namelist() if "/Latin/character12/" in n)
        assert len(members) == 20
        for drawer in (0, 7, 19):
            with archive.open(members[drawer]) as file, Image.open(file) as image:
                dark = 255 - np.asarray(image.convert("L")).astype(float)  # [105, 105], ink 255
            mine = dataset.images[dataset.offsets[index] + drawer, 0].astype(float)
            centres = [
                np.array([(a.sum(1) @ np.arange(len(a))), (a.sum(0) @ np.arange(len(a)))]) / a.sum() / len(a)
                for a in (dark, mine)
            ]
            assert np.allclose(centres[0], centres[1], atol=0.02)  # the same side up
            assert abs(dark.mean() - mine.mean()) < 2  # the same share of ink
    assert np.median(dataset.images) == 0


def test_episodes_of_real_omniglot_are_pinned(omniglot: Splits) -> None:
    sampler = EpisodeSampler(omniglot["test"], ways=20, shots=1, queries=1)
    assert sampler.hash(0, 600) == "be91ac0a3320f8f7"


@pytest.mark.usefixtures("small")
def test_zip_and_folder_give_the_same_arrays_wherever_they_lie(tmp_path: Path) -> None:
    made = tmp_path / "made"
    write_characters(made)
    for sub in ("a/omniglot", "b", "c/omniglot-py"):
        for part in omniglot.PARTS:
            pack(made, part, tmp_path / sub)
    shutil.copytree(made, tmp_path / "d" / "omniglot")
    for part in omniglot.PARTS:
        shutil.copytree(made / part, tmp_path / "f" / part / part)  # unpacked into a folder of its name
    pack(made, omniglot.PARTS[0], tmp_path / "e")
    shutil.copytree(made / omniglot.PARTS[1], tmp_path / "e" / "omniglot-py" / omniglot.PARTS[1])
    for split, size in omniglot.SIZES.items():
        expected = load_dataset("omniglot", split, root=made)
        assert expected.images.shape == (2 * size, 1, 28, 28)
        assert expected.images.std() > 10
        for root in "abcdef":
            found = load_dataset("omniglot", split, root=tmp_path / root)
            assert found.class_names == expected.class_names
            assert found.split_hash == expected.split_hash
            assert np.array_equal(found.images, expected.images)


def test_the_split_depends_on_nothing_but_the_names() -> None:
    names = [f"A/character{i:04}" for i in range(1623)]
    divided = omniglot.split_characters(names)
    assert divided == omniglot.split_characters(names[::-1])
    assert {key: len(value) for key, value in divided.items()} == omniglot.SIZES
    assert sorted(chain.from_iterable(divided.values())) == names


@pytest.mark.usefixtures("small")
def test_an_incomplete_omniglot_is_refused(tmp_path: Path) -> None:
    write_characters(tmp_path)
    (tmp_path / "images_evaluation" / "Beth" / "character03" / "0003_02.png").unlink()
    with pytest.raises(UserError, match="Expected 6 characters with 2 images each, got 6 characters, 5 of them"):
        load_dataset("omniglot", root=tmp_path)


@pytest.mark.usefixtures("small")
def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    write_characters(tmp_path)
    for path in tmp_path.rglob("0002_01.png"):
        path.write_bytes(path.read_bytes()[:80])
    with pytest.raises(UserError, match=r"Expected an image.*character02/0002_01\.png"):
        load_all(tmp_path)


@pytest.mark.usefixtures("small")
def test_a_damaged_zip_is_named(tmp_path: Path) -> None:
    write_characters(tmp_path / "made")
    for part in omniglot.PARTS:
        pack(tmp_path / "made", part, tmp_path)
    path = tmp_path / "images_background.zip"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"got .*images_background\.zip; fetch it again"):
        load_dataset("omniglot", root=tmp_path)
    path.write_bytes(whole[:100] + bytes(50) + whole[150:])  # a member fails its CRC
    with pytest.raises(UserError, match=r"images_background\.zip: images_background/Aleph/character\d\d"):
        load_all(tmp_path)


def test_without_data_and_network_the_user_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", refuse)
    with pytest.raises(UserError) as caught:
        load_dataset("omniglot", root=tmp_path / "none")
    said = str(caught.value)
    for part in ("images_background.zip", str(tmp_path / "none" / "omniglot"), "download failed", "--dataset glyphs"):
        assert part in said
    assert not (tmp_path / "none").exists()


@pytest.mark.usefixtures("small")
def test_what_is_missing_is_downloaded_into_the_first_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_characters(tmp_path / "made")
    asked = []

    def fetch(url: str, path: Path, md5: str, limit: int) -> None:
        asked.append((url, md5))
        assert limit > 10**7
        pack(tmp_path / "made", path.stem, path.parent)

    monkeypatch.setattr(omniglot, "download", fetch)
    monkeypatch.setenv("METAKM_DATA", str(tmp_path / "data"))
    pack(tmp_path / "made", "images_evaluation", tmp_path / "data")
    assert load_dataset("omniglot").n_classes == 3
    official = torchvision.datasets.Omniglot
    assert asked == [(f"{official.download_url_prefix}/images_background.zip", official.zips_md5["images_background"])]
    assert asked[0][0].startswith("https://")
    assert [p.name for p in (tmp_path / "data" / "omniglot-py").iterdir()] == ["images_background.zip"]

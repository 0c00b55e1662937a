"""Datasets that a run cannot be made of: one message, exit code 2, nothing written, before any training."""

import shutil

import numpy as np
import pytest
from PIL import Image

import metakm
from metakm.data import FewShotDataset
from metakm.data.alternating import AlternatingDatasets
from metakm.data.overlap import check_unseen, datasets_of_imagenet
from metakm.data.splits import SPLITS
from metakm.run.__main__ import main
from metakm.run.build import load_splits
from metakm.run.evaluate import RunEvaluation
from metakm.run.evaluate import main as evaluate
from metakm.run.loading import load_run, read_config

pytestmark = pytest.mark.float32

SMALL = "--ways 3 --queries 2 --backbone conv4-4-stride --meta-batch 2 --val-tasks 2 --eval-tasks 2 --iterations 1"
PLUGIN = """
import numpy as np
import metakm


@metakm.register_dataset("dots", title="Dots", family="photographs", ways=3)
def load_dots(split, roots):
    seed = {{"train": 0, "val": 1, "test": 2}}[split]
    images = np.random.default_rng(seed).integers(0, 256, (40, 1, 16, 16), dtype=np.uint8)
    labels = [number // {each} for number in range(40)]
    {more}
    return metakm.FewShotDataset.from_arrays(images, labels, name="dots", split=split)
"""

SEVERAL = """
import numpy as np
import metakm


def load(name, seeds, split):
    seed = dict(zip(("train", "val", "test"), seeds))[split]
    images = np.random.default_rng(seed).integers(0, 256, (40, 1, 16, 16), dtype=np.uint8)
    return metakm.FewShotDataset.from_arrays(images, np.repeat(range(4), 10), name=name, split=split)


for name, seeds in {seeds}.items():
    metakm.register_dataset(name, title=name, family="photographs", ways=3)(
        lambda split, roots, name=name, seeds=seeds: load(name, seeds, split)
    )
"""


@pytest.fixture(autouse=True)
def environment(cache, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    monkeypatch.delenv("METAKM_DATA", raising=False)


def refused(capsys, out, *flags):
    assert main([*SMALL.split(), "--out", str(out), *map(str, flags)]) == 2
    found = capsys.readouterr()
    assert (found.out, found.err.count("\n"), out.exists()) == ("", 1, False)
    return found.err


def plugin(tmp_path, text):
    path = tmp_path / "dots.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("each", "more", "flags", "said"),
    [
        (20, "pass", (), "Expected at most 2 ways (the classes of dots train), got 3; lower ways"),
        (10, "pass", ("--shots", 9), "Expected shots + queries <= 10 (the smallest class of dots train: 0), got 9 + 2"),
        (10, "if split == 'test': images, labels = images[:15], labels[:15]", (), "Expected at most 2 ways"),
        (
            10,
            "images[0] = 7 if split != 'val' else 8",
            (),
            "Expected every class in one split, got '0' with the same images in train of dots and test of dots; move",
        ),
        (
            10,
            "images = images[..., :12, :12] if split == 'test' else images",
            (),
            "Expected images of one shape in all",
        ),
        (10, "labels[7] = None", (), "Expected a label for every image"),
        (10, "images = images.transpose(0, 2, 3, 1)", (), "Expected images"),
    ],
)
def test_a_plugins_dataset_that_no_episodes_can_be_drawn_from(tmp_path, capsys, each, more, flags, said):
    path = plugin(tmp_path, PLUGIN.format(each=each, more=more))
    found = refused(capsys, tmp_path / "out", "--dataset", "dots", "--plugin", path, *flags)
    assert said in found


@pytest.mark.parametrize(
    ("names", "seeds", "said"),
    [
        ("one two", {"one": (0, 0, 0), "two": (1, 1, 1)}, "in train of one and val of one"),
        ("one two", {"one": (0, 1, 2), "two": (3, 4, 4)}, "in val of two and test of two"),
        ("one two", {"one": (0, 1, 2), "two": (3, 4, 0)}, "in train of one and test of two"),
        ("two one", {"one": (0, 1, 2), "two": (3, 4, 1)}, "in val of one and test of two"),
    ],
)
def test_a_class_of_several_datasets_in_two_splits(tmp_path, capsys, names, seeds, said):
    path = plugin(tmp_path, SEVERAL.format(seeds=seeds))
    found = refused(capsys, tmp_path / "out", "--dataset", *names.split(), "--plugin", path)
    assert f"Expected every class in one split, got '0' with the same images {said}; move" in found


def test_a_run_is_not_tested_or_continued_on_classes_that_it_was_trained_on(tmp_path, capsys):
    path = plugin(tmp_path, SEVERAL.format(seeds={"one": (0, 1, 2), "two": (3, 4, 0)}))
    small = [*SMALL.split(), "--algo", "anil", "--plugin", str(path), "--quiet", "--device", "cpu", "--val-every", "1"]
    assert main([*small, "--dataset", "one", "--out", str(tmp_path / "runs")]) == 0
    earlier = tmp_path / "runs" / "one-3w1s" / "anil" / "seed0"
    capsys.readouterr()
    said = "Expected every class in one split, got '0' with the same images in train of one and test of two"
    flags = ["--dataset", "two", "--out", str(tmp_path / "other"), "--plugin", str(path)]
    assert evaluate([str(earlier), *flags, "--device", "cpu", "--quiet"]) == 2
    assert said in capsys.readouterr().err
    assert said in refused(capsys, tmp_path / "other", "--algo", "anil", *flags[:2], *flags[4:], "--init-from", earlier)


def test_datasets_that_divide_imagenet_in_their_own_ways_are_not_mixed():
    def part(name, seed, split):
        images = np.random.default_rng(seed).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
        return FewShotDataset.from_arrays(images, [0, 0, 1, 1], name=name, split=split)

    check_unseen({"train": part("mini-imagenet", 0, "train"), "test": part("mini-imagenet", 1, "test")})
    with pytest.raises(metakm.UserError, match="train of mini-imagenet and test of tiered-imagenet, which divide"):
        check_unseen({"train": part("mini-imagenet", 0, "train"), "test": part("tiered-imagenet", 1, "test")})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("return None", "load_dots to return a FewShotDataset, got NoneType; make one"),
        ("1 / 0", "Expected the dataset 'dots' to be loaded, got ZeroDivisionError: division by zero ("),
        ("raise OSError('no disk')", "Expected data that can be read under "),
    ],
)
def test_a_plugins_dataset_that_fails(tmp_path, capsys, more, said):
    path = plugin(tmp_path, PLUGIN.format(each=10, more=more))
    assert said in refused(capsys, tmp_path / "out", "--dataset", "dots", "--plugin", path)


def test_a_plugins_dataset_of_another_signature(tmp_path, capsys):
    path = plugin(tmp_path, PLUGIN.format(each=10, more="pass").replace("(split, roots)", "(split)"))
    said = "Expected the dataset 'dots' to be loaded, got TypeError: load_dots() takes 1 positional argument but 2"
    assert said in refused(capsys, tmp_path / "out", "--dataset", "dots", "--plugin", path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import metakm_of_tomorrow\n", "to run, got ModuleNotFoundError: No module named 'metakm_of_tomorrow'"),
        ("def broken(:\n", "to run, got SyntaxError"),
        ("raise SystemExit(3)\n", "to run, got SystemExit: 3"),
        ("x = 1\n", "to register something, got nothing"),
        (
            'import metakm\nmetakm.register_dataset("glyphs", title="G", family="characters", ways=5)(print)\n',
            "Expected a new dataset name",
        ),
    ],
)
def test_a_plugin_that_fails_on_import(tmp_path, capsys, text, said):
    assert said in refused(capsys, tmp_path / "out", "--plugin", plugin(tmp_path, text))


def test_a_class_folder_in_two_splits(tmp_path, capsys):
    for split, names in {"train": "abc", "val": "def", "test": "cgh"}.items():
        for name in names:
            for image in range(3):
                path = tmp_path / "photos" / split / name / f"{image}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (20 * image, 0, 0)).save(path)
    flags = ("--dataset", "folder", "--data-root", tmp_path / "photos", "--image-size", 16)
    assert "got 'c' in train and test of" in refused(capsys, tmp_path / "out", *flags)
    (tmp_path / "photos" / "test" / "c").rename(tmp_path / "photos" / "test" / "i")
    assert "Expected shots + queries <= 3" in refused(capsys, tmp_path / "out", *flags, "--shots", 2)
    assert "Expected at most 3 ways" in refused(capsys, tmp_path / "out", *flags, "--ways", 4)


def test_splits_that_number_their_classes_alike_are_fine():
    images = np.random.default_rng(0).integers(0, 256, (3, 12, 1, 8, 8), dtype=np.uint8)
    made = [
        FewShotDataset.from_arrays(own, np.repeat([0, 1], 6), split=split)
        for own, split in zip(images, ("train", "val", "test"), strict=True)
    ]
    splits = dict(zip(("train", "val", "test"), made, strict=True))
    check_unseen(splits)
    with pytest.raises(metakm.UserError, match="'0' with the same images in train of custom and val of custom"):
        check_unseen({**splits, "val": splits["train"]})


def test_image_size_is_advised_only_where_it_would_help():
    grey, small, large = (
        FewShotDataset.from_arrays(np.zeros((2, *shape), np.uint8), np.array([0, 1]), name=str(shape), split="test")
        for shape in ((1, 8, 8), (3, 8, 8), (3, 12, 12))
    )
    with pytest.raises(metakm.UserError, match=r"; choose another$"):
        AlternatingDatasets((grey, small))
    with pytest.raises(metakm.UserError, match=r"; give --image-size, or choose another$"):
        AlternatingDatasets((small, large))


def test_what_imagenet_weights_have_seen_is_known():
    assert datasets_of_imagenet("flowers+mini-imagenet+tiered-imagenet") == ["mini-imagenet", "tiered-imagenet"]
    assert datasets_of_imagenet("omniglot") == []


def test_classes_that_a_run_was_trained_on_are_known_in_another_size_and_another_folder(tmp_path, capsys):
    for label in range(9):
        for image in range(4):
            path = tmp_path / "all" / f"c{label}" / f"{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (24, 24), (20 * label, 50 * image, 10)).save(path)
    data = ["--dataset", "folder", "--data-root", str(tmp_path / "all"), "--split", "3/3/3"]
    small = [*SMALL.split(), "--algo", "anil", "--quiet", "--device", "cpu", "--val-every", "1"]
    assert main([*small, *data, "--image-size", "20", "--out", str(tmp_path / "runs")]) == 0
    earlier = tmp_path / "runs" / "folder-3w1s" / "anil" / "seed0"
    capsys.readouterr()
    said = "Expected every class in one split, got 'c"
    for size in ("20", "24"):
        flags = [*data, "--split-seed", "1", "--image-size", size, "--init-from", earlier]
        assert said in refused(capsys, tmp_path / "other", "--algo", "anil", *flags)
    config = read_config(earlier)
    trained = load_splits(config, "train")[0].class_names
    for split in SPLITS:
        for name in trained:
            shutil.copytree(tmp_path / "all" / name, tmp_path / "elsewhere" / split / f"{name} {split}")
    for name in trained:  # the test split has them under their own names
        (tmp_path / "elsewhere" / "test" / f"{name} test").rename(tmp_path / "elsewhere" / "test" / name)
    with pytest.raises(metakm.UserError, match=said):
        RunEvaluation(load_run(earlier), "test", {"data_root": tmp_path / "elsewhere", "split": None})

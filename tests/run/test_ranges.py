"""Runs with ways and shots out of ranges in meta-training, and of folders that are divided by --split."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from runs import state

import metakm
from metakm.data import load_dataset
from metakm.presets import preset_config
from metakm.run.__main__ import main
from metakm.run.command_line import command, parse

pytestmark = pytest.mark.float32

SMALL = "--queries 2 --backbone conv4-4-stride --meta-batch 2 --val-tasks 4 --eval-tasks 6 --device cpu --val-every 2"


@pytest.fixture(autouse=True)
def environment(cache, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    monkeypatch.delenv("METAKM_DATA", raising=False)


def config_of(*flags):
    return parse(list(flags))


@pytest.mark.parametrize("given", [("--ways", "2-6", "--shots", "1-3"), ("--ways=2-6", "--shots=1-3")])
def test_a_range_is_of_meta_training_and_the_tests_have_the_default(given):
    config = config_of("--algo", "protonet", *given)
    assert (config.train_ways, config.train_shots) == ("2-6", "1-3")
    assert (config.ways, config.shots) == (20, 1)
    assert config == config_of("--algo", "protonet", "--train-ways", "2-6", "--train-shots", "1-3")
    assert config == metakm.RunConfig(algo="protonet", ways="2-6", shots="1-3")
    assert parse(command(config).split()[3:]) == config
    assert config_of("--algo", "protonet", "--train-ways", "2-6", "--ways", "4").ways == 4


def test_the_range_is_in_the_run_id_as_text_and_older_runs_keep_theirs():
    plain, ranged = preset_config(algo="protonet"), preset_config(algo="protonet", train_ways="2-6")
    assert "-train-ways-2-6-quick" in ranged.run_id
    assert not {"train_ways", "train_shots", "split", "split_seed"} & plain.identity().keys()
    assert ranged.run_id[-8:] != plain.run_id[-8:]
    assert metakm.RunConfig.from_json(json.loads(json.dumps(ranged.to_json()))) == ranged


@pytest.mark.parametrize("algo", ["protonet", "km-proto", "r2d2"])
def test_a_run_of_ranges_learns_resumes_and_says_what_it_tests(tmp_path, capsys, algo):
    flags = ["--algo", algo, "--train-ways", "2-6", "--shots", "1-3", "--ways", "3", *SMALL.split()]
    assert main([*flags, "--iterations", "4", "--out", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().err
    assert "meta-training draws 2-6 ways and 1-3 shots for each meta-batch; tests are 3-way 1-shot" in said
    place = tmp_path / "a" / "glyphs-3w1s" / algo / "seed0"
    row = pd.read_csv(place / "result.csv").iloc[0]
    assert json.loads(row.changes)["train_ways"] == "2-6"
    assert json.loads(row.changes)["train_shots"] == "1-3"
    assert (row.ways, row.shots) == (3, 1)
    constant = [*flags, "--schedule", "constant", "--out"]
    assert main([*constant, str(tmp_path / "b"), "--iterations", "4"]) == 0
    assert main([*constant, str(tmp_path / "c"), "--iterations", "2"]) == 0
    assert main([*constant, str(tmp_path / "c"), "--iterations", "4", "--resume"]) == 0
    b, c = (tmp_path / out / "glyphs-3w1s" / algo / "seed0" for out in "bc")
    assert state(b) == state(c)


def test_any_head_takes_a_range_of_shots(tmp_path):
    flags = ["--algo", "maml", "--ways", "3", "--shots", "1-3", *SMALL.split(), "--iterations", "2"]
    assert main([*flags, "--out", str(tmp_path)]) == 0
    assert json.loads(pd.read_csv(next(tmp_path.rglob("result.csv"))).changes[0])["train_shots"] == "1-3"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--algo", "km", "--ways", "5-20"), "Expected --ways to be one number for 'km', whose head"),
        (("--algo", "protonet", "--ways", "20-5"), "range of ways from 2 or more such as 5-20, got '20-5'"),
        (("--algo", "protonet", "--ways", "1-5"), "range of ways from 2 or more such as 5-20, got '1-5'"),
        (("--algo", "protonet", "--train-shots", "0-5"), "range of shots from 1 or more such as 5-20, got '0-5'"),
        (("--algo", "protonet", "--train-ways", "many"), "got 'many'"),
        (("--ways", "5-20", "--train-ways", "3-4"), "range in --ways or in --train-ways, got both"),
        (("--train_ways", "5-8", "--ways", "5-9"), "range in --ways or in --train-ways, got both"),
        (("--train_shots=1-2", "--shots=1-3"), "range in --shots or in --train-shots, got both"),
        (("--algo", "protonet", "--ways", "5-1200"), "Expected at most 800 ways"),
        (("--algo", "protonet", "--shots", "1-19"), "Expected shots + queries <= 20"),
        (("--split", "6/2/2"), "Expected no --split with glyphs, which has a split of its own"),
        (("--split", "6/2"), "Expected --split to be three numbers of classes"),
        (("--split-seed", "1"), "Expected --split with --split-seed 1, got none"),
    ],
)
def test_what_is_no_range_or_split_is_refused(tmp_path, capsys, flags, said):
    assert main([*SMALL.split(), *flags, "--iterations", "1", "--out", str(tmp_path)]) == 2
    found = capsys.readouterr()
    assert said in found.err
    assert (found.err.count("\n"), found.out, [*tmp_path.iterdir()]) == (1, "", [])


@pytest.fixture
def flat(tmp_path):
    """Ten class folders of five images, of red 20 times the class."""
    for label in range(10):
        for image in range(5):
            path = tmp_path / "flat" / f"kind {label}" / f"{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 12), (20 * label, 10, 10)).save(path)
    return tmp_path / "flat"


def test_a_flat_folder_is_divided_by_its_own_seed(flat):
    def splits(seed):
        found = {}
        for split in ("train", "val", "test"):
            dataset = load_dataset("folder", split, root=flat, class_split="6/2/2", split_seed=seed)
            reds = [20 * int(name[-1]) for name in dataset.class_names for _ in range(5)]
            assert dataset.images[:, 0, 0, 0].tolist() == reds
            found[split] = dataset.class_names
        return found

    first = splits(0)
    assert [len(names) for names in first.values()] == [6, 2, 2]
    assert sorted(name for names in first.values() for name in names) == [f"kind {n}" for n in range(10)]
    assert splits(0) == first
    assert any(splits(seed) != first for seed in (1, 2))


def test_a_flat_folder_may_be_the_current_one_and_its_photographs_are_upright(flat, monkeypatch):
    for path in flat.rglob("*.png"):
        path.unlink()
        turned = Image.new("RGB", (20, 10), (255, 255, 255))
        turned.paste((0, 0, 0), (0, 0, 10, 10))  # dark on the left
        exif = Image.Exif()
        exif[0x0112] = 6  # shown a quarter turn clockwise, dark on top
        turned.save(path.with_suffix(".jpg"), exif=exif, quality=95)
    monkeypatch.chdir(flat)
    dataset = load_dataset("folder", "val", root=".", image_size=32, class_split="6/2/2")
    assert dataset.counts.tolist() == [5, 5]
    assert dataset.images[:, :, 2:14].max() < 20 < 235 < dataset.images[:, :, 18:30].min()


def test_a_run_on_a_flat_folder_keeps_its_split(flat, tmp_path):
    flags = f"--dataset folder --data-root {flat} --ways 2 --split 6/2/2 --split-seed 3 --image-size 16 --iterations 1"
    assert main([*flags.split(), *SMALL.split(), "--out", str(tmp_path / "out")]) == 0
    place = tmp_path / "out" / "folder-2w1s" / "km" / "seed0"
    row = pd.read_csv(place / "result.csv").iloc[0]
    assert "-split-6-2-2-quick" in row.run_id
    assert json.loads(row.changes)["split"] == "6/2/2"
    assert json.loads(row.changes)["split_seed"] == 3
    again = metakm.evaluate(place, device="cpu")
    assert again.accuracies.tolist() == pd.read_csv(place / "tasks.csv").accuracy.tolist()
    assert np.isclose(again.accuracy, row.accuracy)


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("5/2/2", "Expected --split to add up to the 10 classes of"),
        ("8/1/1", "Expected at most 1 ways"),
    ],
)
def test_a_split_that_does_not_fit_the_folder_is_refused(flat, tmp_path, capsys, split, said):
    flags = f"--dataset folder --data-root {flat} --ways 2 --split {split} --image-size 16 --iterations 1"
    assert main([*flags.split(), *SMALL.split(), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (flat / "train").mkdir()
    (flat / "val").mkdir()
    (flat / "test").mkdir()
    assert main([*flags.split(), *SMALL.split(), "--out", str(tmp_path / "out")]) == 2
    assert "leave --split out" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["5/5", "a/b/c", "4/2/2/2", "10/0/0", ""])
def test_a_split_of_anything_but_three_numbers_is_refused_in_python_too(flat, split):
    with pytest.raises(metakm.UserError, match="Expected --split to be three numbers of classes, such as 64/16/20"):
        metakm.load_dataset("folder", split="train", root=flat, class_split=split)


def test_two_ranges_for_one_thing_are_refused_in_python_too():
    with pytest.raises(metakm.UserError, match="range in --shots or in --train-shots, got both"):
        metakm.RunConfig(shots="1-5", train_shots="2-3")

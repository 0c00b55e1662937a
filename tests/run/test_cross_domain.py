"""`metakm evaluate --dataset`: a run tested on other data, its row, and the table of such rows."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from photographs import flower_files, grocery_files, write_files
from PIL import Image

import metakm
from metakm.data import FewShotDataset, load_dataset, registry
from metakm.data.channels import in_grey
from metakm.errors import UserError
from metakm.run import provenance
from metakm.run.__main__ import main
from metakm.run.evaluate import main as evaluate_main
from metakm.run.folder import RunFolder
from metakm.table.__main__ import main as table

pytestmark = pytest.mark.float32

SMALL = "--ways 3 --queries 3 --backbone conv4-4-stride --meta-batch 2 --val-tasks 4 --eval-tasks 6 --device cpu"
SMALL += " --iterations 2 --val-every 2"
FITTING = ("--image-size", "28", "--grey")


@pytest.fixture(autouse=True)
def environment(cache, data, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    monkeypatch.setenv("METAKM_DATA", str(data))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Small fakes of Flowers-102 and Grocery Store."""
    folder = tmp_path_factory.mktemp("data")
    write_files(folder, {**flower_files(each=6), **grocery_files(each=6)})
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cache):
    """Runs of KM and of prototypical networks on glyphs; do not change them."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAKM_CACHE", str(cache))
        for algo in ("km", "protonet"):
            assert main([*SMALL.split(), "--algo", algo, "--out", str(out)]) == 0
    return out / "glyphs-3w1s"


def evaluate(run, out, *flags):
    return evaluate_main([str(run), *([] if out is None else ["--out", str(out)]), "--device", "cpu", *flags])


def test_a_run_is_tested_on_other_data_and_gets_a_row_of_its_own(runs, tmp_path, capsys):
    own = RunFolder(runs / "km" / "seed0").read_row()
    assert evaluate(runs / "km" / "seed0", tmp_path, "--dataset", "flowers", *FITTING) == 0
    place = tmp_path / own["run_id"] / "flowers-3w1s-grey"
    said = capsys.readouterr().out
    assert said.startswith("km flowers 3-way 1-shot (quick, seed 0, batch norm transductive): meta-test accuracy")
    assert said.endswith(f", trained on glyphs-3w1s: {place / 'result.csv'}\n")
    row = RunFolder(place).read_row()
    assert (row["dataset"], row["trained_on"], row["tested_as"]) == ("flowers", "glyphs-3w1s", "grey")
    assert row["run_id"] == f"{own['run_id']}-on-flowers-3w1s-grey"
    assert row["split_hash"] != own["split_hash"]
    assert row["episodes_hash"] != own["episodes_hash"]
    for column in ("algo", "ways", "shots", "backbone", "seed", "iterations", "val_accuracy", "git_commit", "changes"):
        assert row[column] == own[column], column
    tasks = pd.read_csv(place / "tasks.csv").accuracy
    assert tasks.mean() == pytest.approx(row["accuracy"])
    loaded = metakm.load_run(runs / "km" / "seed0")
    again = metakm.evaluate(loaded, dataset="flowers", image_size=28, grey=True, device="cpu")
    assert again.accuracies.tolist() == tasks.tolist()
    assert {path.name for path in place.iterdir()} == {"result.csv", "tasks.csv"}


def test_the_row_names_what_trained_and_what_tested(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "git_commit", lambda: "bbbb")
    assert evaluate(runs / "km" / "seed0", tmp_path, "--dataset", "flowers", *FITTING) == 0
    own, (path,) = RunFolder(runs / "km" / "seed0").read_row(), tmp_path.rglob("result.csv")
    row = RunFolder(path.parent).read_row()
    assert row["git_commit"] == f"{own['git_commit'] or 'unknown'} + bbbb"
    assert row["device"] == own["device"]


def test_scripts_get_the_row(runs, tmp_path, capsys):
    flags = ("--dataset", "grocery-store", *FITTING, "--json", "--quiet", "--eval-tasks", "4")
    assert evaluate(runs / "km" / "seed0", tmp_path, *flags) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["event"], found["trained_on"], found["dataset"]) == ("result", "glyphs-3w1s", "grocery-store")
    assert found["n_tasks"] == 4
    assert json.loads(found["changes"])["eval_tasks"] == 4


def test_a_row_of_another_test_is_not_written_over(runs, tmp_path, capsys):
    flags = ("--dataset", "flowers", *FITTING, "--quiet")
    assert evaluate(runs / "km" / "seed0", tmp_path, *flags) == 0
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for other in (("--eval-tasks", "2"), ("--test-queries", "2"), ("--test-inner-steps", "7")):
        assert evaluate(runs / "km" / "seed0", tmp_path, *flags, *other) == 2
        assert "Expected a test like that in" in capsys.readouterr().err
    assert evaluate(runs / "km" / "seed0", tmp_path, *flags) == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


@pytest.fixture
def flowers_again(monkeypatch):
    """A dataset whose every split is the flowers' training classes."""
    monkeypatch.setattr(registry.datasets, "entries", dict(registry.datasets.entries))

    @metakm.register_dataset("flowers-again", title="Flowers again", family="photographs", ways=3)
    def load(split, roots, image_size=28):  # noqa: ARG001
        return dataclasses.replace(load_dataset("flowers", "train", image_size=image_size), name="flowers-again")


@pytest.mark.usefixtures("flowers_again")
@pytest.mark.parametrize("colours", [(), ("--grey",)])
def test_classes_that_the_run_was_trained_on_are_refused_in_grey_too(colours, tmp_path, capsys):
    flags = [*SMALL.split(), "--dataset", "flowers", "--image-size", "28", "--out", str(tmp_path / "runs")]
    assert main(flags) == 0
    run = tmp_path / "runs" / "flowers-3w1s" / "km" / "seed0"
    assert evaluate(run, tmp_path / "out", "--dataset", "flowers-again", *colours) == 2
    assert "Expected every class in one split" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_head_of_other_ways_is_refused_by_name_and_prototypes_take_any(runs, tmp_path, capsys):
    other = ("--dataset", "flowers", *FITTING, "--ways", "5", "--shots", "2")
    assert evaluate(runs / "km" / "seed0", tmp_path, *other) == 2
    said = capsys.readouterr().err
    assert "Expected --ways 3, for which the head of 'km' was trained, got 5" in said
    assert "protonet" in said
    assert not any(tmp_path.iterdir())
    assert evaluate(runs / "protonet" / "seed0", tmp_path, *other) == 0
    (row,) = (RunFolder(path.parent).read_row() for path in tmp_path.rglob("result.csv"))
    assert (row["ways"], row["shots"], row["trained_on"]) == (5, 2, "glyphs-3w1s")


def test_a_run_on_a_divided_folder_is_tested_on_other_data(tmp_path, data):
    for number in range(9):
        (tmp_path / "photos" / f"{number}").mkdir(parents=True)
        for each in range(5):
            Image.new("RGB", (28, 28), (20 * number, 30 * each, 0)).save(
                tmp_path / "photos" / f"{number}" / f"{each}.png"
            )
    flags = [*SMALL.split(), "--dataset", "folder", "--split", "3/3/3", "--image-size", "28", "--out", str(tmp_path)]
    assert main([*flags, "--data-root", str(tmp_path / "photos")]) == 0
    other = ("--dataset", "flowers", "--image-size", "28", "--data-root", str(data))
    run = tmp_path / "folder-3w1s" / "km" / "seed0"
    assert evaluate(run, tmp_path / "out", *other) == 0
    (row,) = (RunFolder(path.parent).read_row() for path in (tmp_path / "out").rglob("result.csv"))
    assert row["changes"] == RunFolder(run).read_row()["changes"], "it belongs to the run's row in a table"


def test_other_ways_on_the_runs_own_data_write_nothing(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert evaluate(runs / "protonet" / "seed0", None, "--ways", "4") == 0
    assert "protonet glyphs 4-way 1-shot" in capsys.readouterr().out
    assert evaluate(runs / "km" / "seed0", None, "--dataset", "flowers", *FITTING, "--split", "val") == 0
    for flags in ((), ("--dataset", "flowers", *FITTING, "--split", "val")):
        assert evaluate(runs / "km" / "seed0", tmp_path / "out", *flags) == 2
        assert "Expected --out only with a meta-test on another --dataset" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--dataset", "flowers"), "got [3, 84, 84] of flowers; add --grey --image-size 28"),
        (("--dataset", "flowers", "--grey"), "got [1, 84, 84] of flowers; add --image-size 28"),
        (("--dataset", "flowers", "--image-size", "28"), "got [3, 28, 28] of flowers; add --grey"),
        (("--dataset", "glyphs", "--image-size", "32"), "Expected image_size 0 (the dataset's own) with glyphs"),
        (("--dataset", "flowers", *FITTING, "--shots", "5"), "Expected shots + queries <= 6"),
        (("--dataset", "flower", *FITTING), "did you mean 'flowers'"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_do(runs, tmp_path, capsys, flags, said):
    assert evaluate(runs / "km" / "seed0", tmp_path, *flags) == 2
    found = capsys.readouterr()
    assert said in found.err
    assert found.err.count("\n") == 1
    assert (found.out, [*tmp_path.iterdir()]) == ("", [])


def test_data_of_one_size_cannot_be_made_to_fit(runs, tmp_path, monkeypatch, capsys):
    load = metakm.load_run
    monkeypatch.setattr("metakm.run.evaluate.load_run", lambda path: _of_84(load(path)))
    assert evaluate(runs / "km" / "seed0", tmp_path, "--dataset", "glyphs") == 2
    assert "got [1, 28, 28] of glyphs, which has this size alone" in capsys.readouterr().err


def _of_84(run):
    config = dataclasses.replace(run.config, dataset="flowers")
    return dataclasses.replace(run, config=config, image_shape=(3, 84, 84))


def test_a_run_that_is_not_finished_has_no_row_to_write(runs, tmp_path, capsys):
    shutil.copytree(runs / "km" / "seed0", tmp_path / "run")
    (tmp_path / "run" / "result.csv").unlink()
    assert evaluate(tmp_path / "run", tmp_path / "out", "--dataset", "flowers", *FITTING) == 2
    assert "Expected a finished run to test on flowers" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert evaluate(runs / "km" / "seed0", tmp_path / "file" / "out", "--dataset", "flowers", *FITTING) == 2
    assert "Expected --out to be a folder that can be written" in capsys.readouterr().err


def test_grey_is_pillows_and_colour_networks_get_equal_channels():
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 6, 6), dtype=np.uint8)
    dataset = FewShotDataset.from_arrays(images, [0, 0, 1, 1, 1], split="test")
    one, three = in_grey(dataset, 1), in_grey(dataset, 3)
    expected = [np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L")) for image in images]
    assert np.array_equal(one.images[:, 0], np.stack(expected))
    assert all(np.array_equal(three.images[:, channel], one.images[:, 0]) for channel in range(3))
    assert np.array_equal(in_grey(one, 3).images, three.images)
    assert (one.split_hash, one.class_names) == (dataset.split_hash, dataset.class_names)


def test_images_of_other_channels_have_no_grey():
    images = np.zeros((4, 5, 6, 6), np.uint8)
    with pytest.raises(UserError, match="1 or 3 channels to make grey, got 5 in bands; leave --grey out"):
        in_grey(FewShotDataset.from_arrays(images, [0, 0, 1, 1], name="bands"), 1)


def test_the_table_shows_what_was_trained_by_what_was_tested(runs, tmp_path, capsys):
    shutil.copytree(runs, tmp_path / "glyphs-3w1s", ignore=shutil.ignore_patterns("checkpoint.pt"))
    for algo in ("km", "protonet"):
        for dataset in ("flowers", "grocery-store"):
            flags = ("--dataset", dataset, "--image-size", "28", "--grey", "--quiet")
            assert evaluate(runs / algo / "seed0", tmp_path / "cross-domain", *flags) == 0
    capsys.readouterr()
    assert table([str(tmp_path), "--layout", "cross-domain", "--format", "csv"]) == 0
    shown = capsys.readouterr().out
    header, km, protonet = shown.splitlines()[:3]
    assert "Flowers-102 3-way 1-shot" in header
    assert "Grocery Store 3-way 1-shot" in header
    assert '"glyphs-3w1s, tested in grey","km (quick' in km
    assert "protonet (quick" in protonet
    row = RunFolder(next((tmp_path / "cross-domain").glob("*-km-*/flowers*"))).read_row()
    assert f"{100 * row['accuracy']:.2f} ± {100 * row['ci95']:.2f} (1)" in km
    assert table([str(tmp_path)]) == 0
    assert "4 rows tested on other data than trained on: --layout cross-domain" in capsys.readouterr().out
    assert table([str(tmp_path), "--all", "--format", "json"]) == 0
    assert "flowers" not in capsys.readouterr().out, "Table III is of runs on their own data"


def test_the_columns_of_a_table_have_the_same_tasks(runs, tmp_path):
    for algo in ("km", "protonet"):
        assert evaluate(runs / algo / "seed0", tmp_path, "--dataset", "flowers", *FITTING, "--quiet") == 0
    hashes = {RunFolder(path.parent).read_row()["episodes_hash"] for path in tmp_path.rglob("result.csv")}
    assert len(hashes) == 1
    assert load_dataset("flowers", "test").n_classes == 16

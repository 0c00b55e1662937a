"""~ is the user's home in every path, as no shell may have seen to it: `--out=~/results`, variables, Python."""

import dataclasses
import shutil
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from convnets import Mixed
from PIL import Image

import metakm
from metakm.cli.flags import read_options
from metakm.experiments import ablation, scratch, transfer
from metakm.experiments.classification import load_image_folder
from metakm.experiments.config import parse as parse_experiment
from metakm.experiments.lines import read_experiments
from metakm.fields import flag
from metakm.modulation import load_pack, modulate, read_pack, save_pack
from metakm.packs.__main__ import main as packs_main
from metakm.report.__main__ import ReportOptions
from metakm.report.__main__ import main as report_main
from metakm.run.__main__ import main as run_main
from metakm.run.command_line import parse
from metakm.run.evaluate import EvaluateOptions
from metakm.run.evaluate import main as evaluate_main
from metakm.sweep.__main__ import main as sweep_main
from metakm.sweep.options import parse_sweep
from metakm.sweep.plan import expand
from metakm.table.__main__ import TableOptions
from metakm.table.__main__ import main as table_main
from metakm.table.collect import read_runs

pytestmark = pytest.mark.float32

SMALL = "--ways 3 --queries 2 --backbone conv4-4-stride --meta-batch 2 --val-tasks 2 --eval-tasks 2 --iterations 1"


@pytest.fixture(autouse=True)
def home(tmp_path, cache, monkeypatch):
    """A home folder; the working folder is another one, and must stay empty."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "home"
    assert not list((tmp_path / "here").iterdir())


READERS = {
    "run": parse,
    "evaluate": lambda flags: read_options(EvaluateOptions, "evaluate", ["~/run", *flags]),
    "sweep": lambda flags: expand(*parse_sweep(["glyphs", *flags]))[0],
    "table": lambda flags: read_options(TableOptions, "table", flags),
    "report": lambda flags: read_options(ReportOptions, "report", flags),
    **{
        module.__name__.rpartition(".")[2]: lambda flags, module=module: parse_experiment(module.PRESETS, "x", flags)
        for module in (scratch, transfer, ablation)
    },
}


@pytest.mark.parametrize("name", READERS)
def test_every_flag_that_takes_a_path_expands_it(name, home):
    read = READERS[name]
    options = type(read([]))
    hints = {field.name: get_type_hints(options)[field.name] for field in dataclasses.fields(options)}
    paths = {n: hint for n, hint in hints.items() if Path in (hint, *get_args(hint)) and n not in ("results", "run")}
    assert paths
    for field, hint in paths.items():
        if (name, field) == ("sweep", "plugin"):  # a sweep loads it at once; the flag is the run's
            continue
        several = hint == tuple[Path, ...]
        value = getattr(read([flag(field), "~/a b/c"]), field)
        assert value == ((home / "a b/c",) if several else home / "a b/c"), field


@pytest.mark.parametrize("options", [TableOptions, ReportOptions])
def test_a_folder_without_a_flag_is_expanded_too(options, home):
    assert read_options(options, "x", ["~/runs"]).results == home / "runs"


def test_the_home_of_an_unknown_user_is_refused_by_the_flag(capsys):
    assert run_main(["--out=~no such user/results", *SMALL.split()]) == 2
    assert "Expected --out to be a path, got ~no such user/results" in capsys.readouterr().err


def test_commands_write_below_the_home(home, capsys):
    assert run_main([*SMALL.split(), "--out=~/runs"]) == 0
    assert (home / "runs/glyphs-3w1s/km/seed0/weights.safetensors").is_file()
    assert evaluate_main(["~/runs/glyphs-3w1s/km/seed0"]) == 0
    assert sweep_main(["glyphs", "--shots=1", "--seeds=1", "--algo", "km", *SMALL.split(), "--out=~/runs"]) == 0
    assert "1 done" in capsys.readouterr().out
    assert table_main(["~/runs", "--out=~/table.txt", "--plot=~/plot.png"]) == 0
    assert report_main(["~/runs", "--out=~/report.html", "--episodes=0"]) == 0
    assert {p.name for p in home.iterdir()} >= {"runs", "table.txt", "plot.png", "report.html"}


def test_a_plugin_named_with_the_home_is_found(home):
    text = "import metakm\nfrom metakm.strategies.anil import ANIL\n"
    text += "metakm.register_strategy('mine')(type('_', (ANIL,), {}))"
    (home / "mine.py").write_text(text)
    assert parse(["--algo", "mine", "--preset", "table3", "--plugin=~/mine.py"]).plugin == (home / "mine.py",)
    metakm.load_plugin("~/mine.py")
    assert "mine" in metakm.available_strategies()


def test_environment_variables_expand_it(home, monkeypatch):
    for split, names in {"train": "ab", "val": "c", "test": "d"}.items():
        for name in names:
            (home / "data" / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(home / "data" / split / name / "0.png")
    monkeypatch.setenv("METAKM_DATA", "~/data")
    monkeypatch.setenv("METAKM_CACHE", "~/cache")
    assert metakm.load_dataset("folder").class_names == ("a", "b")
    assert list((home / "cache" / "arrays").glob("*.npy"))
    assert metakm.load_dataset("folder", root="~/data").n_classes == 2


def test_functions_that_take_a_path_expand_it(home, trained):
    torch.manual_seed(0)
    base = Mixed()
    save_pack(modulate(base), "~/packs/a.safetensors")
    assert (home / "packs/a.safetensors").is_file()
    assert read_pack("~/packs/a.safetensors").task == ""
    load_pack(base, "~/packs/a.safetensors")
    assert packs_main(["inspect", "~/packs/a.safetensors"]) == 0
    shutil.copytree(trained, home / "runs")
    assert metakm.load_run("~/runs/glyphs-3w1s/km/seed0").config.algo == "km"
    assert len(read_runs("~/runs").runs) == 3
    assert read_experiments("~/runs") == ([], [])
    (home / "pictures" / "a").mkdir(parents=True)
    Image.new("RGB", (8, 8), (9, 0, 0)).save(home / "pictures/a/0.png")
    assert np.array_equal(metakm.read_images(["~/pictures/a/0.png"], (1, 8, 8)), np.full((1, 1, 8, 8), 3))
    with pytest.raises(metakm.UserError, match=f"at least two, in every part of {home}/pictures"):
        load_image_folder("~/pictures", side=8)

"""Where and how a command is started: no terminal, no home, a notebook's settings, a reader that leaves, ~ in paths."""

import io
import os
import pwd
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from convnets import Mixed

import metakm
from metakm.data.cache import cache_folder
from metakm.exit_code import exit_code
from metakm.modulation import load_pack, modulate, read_pack, save_pack
from metakm.run import main

FLAGS = "--ways 3 --queries 2 --backbone conv4-4-stride --meta-batch 2 --val-tasks 2 --eval-tasks 2 --iterations 1"
SMALL = FLAGS.split()
RESULTS = Path(__file__).parent.parent / "results" / "quick"
RUN_FILES = {"checkpoint.pt", "config.json", "curve.csv", "result.csv", "tasks.csv", "weights.safetensors"}


@pytest.fixture(autouse=True)
def environment(cache, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    torch.set_default_dtype(torch.float32)


def files(folder):
    return {path.name for path in folder.rglob("*") if path.is_file()} - {"run.lock"}


def test_a_notebook_s_backend_does_not_stop_the_picture(tmp_path):
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    command = [sys.executable, "-m", "metakm.run", *SMALL, "--out", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path) == RUN_FILES | {"curve.png"}


def test_a_picture_that_cannot_be_drawn_is_done_without(tmp_path, monkeypatch, caplog):
    def no_fonts(*_, **__):
        raise RuntimeError("no fonts")

    monkeypatch.setattr("metakm.results.folder.curve_png", no_fonts)
    assert main([*SMALL, "--out", str(tmp_path)]) == 0
    assert files(tmp_path) == RUN_FILES
    assert "no curve.png: it could not be drawn (no fonts)" in caplog.text


@pytest.mark.parametrize("missing", ["stderr", "stdout"])
def test_a_process_without_a_terminal_runs(tmp_path, monkeypatch, missing):
    monkeypatch.setattr(sys, missing, None)
    assert main([*SMALL, "--out", str(tmp_path)]) == 0
    assert getattr(sys, missing) is None
    assert files(tmp_path) >= RUN_FILES


@pytest.mark.parametrize(
    "arguments",
    [
        ["metakm.table", str(RESULTS), "--all"],
        ["metakm.run", "--dry-run", *SMALL],
        ["metakm.sweep", "--help"],
        ["metakm.packs", "--help"],
        ["metakm"],
    ],
)
def test_a_reader_that_leaves_ends_a_command_without_a_word(arguments):
    """As `| head` does: the pipe is closed before anything is written to it."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        process = subprocess.run([sys.executable, "-m", *arguments], stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert "Traceback" not in process.stderr
    assert "BrokenPipe" not in process.stderr
    assert process.returncode == 141


def test_an_error_that_closes_no_pipe_is_told(capsys):
    def full():
        raise OSError("No space left on device")

    assert exit_code(full, "repeat it") == 1
    assert capsys.readouterr().err == "error: No space left on device; fix this, then repeat it\n"


def test_a_user_without_a_home_is_told_to_name_a_cache(monkeypatch):
    def nobody(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "METAKM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(metakm.UserError, match="set METAKM_CACHE to a folder"):
        cache_folder()


def test_a_tilde_is_the_home_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main([*SMALL, "--out=~/runs"]) == 0
    folder = "~/runs/glyphs-3w1s/km/seed0"
    assert metakm.load_run(folder).config.ways == 3
    assert main(["--evaluate", folder, "--quiet"]) == 0
    model = modulate(Mixed())
    save_pack(model, "~/packs/a")
    load_pack(model, "~/packs/a")
    assert read_pack("~/packs/a").task == ""
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["packs", "runs"]


@pytest.mark.parametrize("names", [np.array(["a", "b", "c"]), list(np.unique([1, 2, 3])), ("a", "b", "c")])
def test_class_names_of_numpy_are_kept_in_a_pack(tmp_path, names):
    save_pack(modulate(Mixed()), tmp_path / "a", classes=names)
    assert read_pack(tmp_path / "a").classes == tuple(np.asarray(names).tolist())


def test_a_file_object_in_place_of_a_terminal_is_written_to(tmp_path, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    assert main([*SMALL, "--out", str(tmp_path)]) == 0
    assert "meta-train 1/1" in stream.getvalue()

import dataclasses
import subprocess
import sys

import pytest
import torch
from runs import small_config

from metakm.run import provenance
from metakm.run.folder import RunFolder
from metakm.run.peak_memory import peak_memory_mb
from metakm.run.provenance import ORIGIN, both
from metakm.run.runner import Run

CODE = """
import torch
from metakm.run.peak_memory import peak_memory_mb
print(peak_memory_mb(torch.device("cpu")))
"""


def test_the_peak_memory_of_a_process_is_not_that_of_its_parent():
    held = b"x" * 500_000_000
    assert peak_memory_mb(torch.device("cpu")) > 500
    child = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    del held
    assert 50 < float(child.stdout) < 900


class After:
    """A request to stop after an iteration."""

    def __init__(self, run, iteration):
        self.run, self.iteration = run, iteration

    @property
    def requested(self):
        return self.run.loop.iteration >= self.iteration


class Never:
    requested = False


@pytest.mark.float32
def test_the_row_of_a_resumed_run_names_all_that_computed_it(tmp_path, monkeypatch, cache, capsys):
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    config = small_config(tmp_path)
    for commit, last in (("aaaa", 1), ("bbbb", 3), ("aaaa", None)):
        monkeypatch.setattr(provenance, "git_commit", lambda commit=commit: commit)
        run = Run(dataclasses.replace(config, resume=last != 1), Never())
        run.stop = Never() if last is None else After(run, last)
        assert run.execute() == (0 if last is None else 130)
        assert ("git_commit aaaa + bbbb" in capsys.readouterr().err) == (last != 1)
    row = RunFolder(config.folder).read_row()
    assert row["git_commit"] == "aaaa + bbbb"
    assert (row["device"], row["threads"]) == ("cpu", str(torch.get_num_threads()))


def test_what_an_earlier_part_does_not_tell_is_taken_to_be_the_same():
    later = dict(zip(ORIGIN, ("cpu", "1", "2.15.0+cpu", "0.3.0", "bbbb"), strict=True))
    assert both({}, later) == later
    assert both({**later, "git_commit": ""}, later)["git_commit"] == "unknown + bbbb"
    assert both({**later, "threads": "1 + 2"}, {**later, "threads": "2"})["threads"] == "1 + 2"
    assert provenance.mixed(later) == ""


def test_a_commit_is_dirty_with_an_edited_or_a_new_module_and_not_with_other_files(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "metakm" / "run" / "provenance.py"))
    (tmp_path / "metakm" / "run").mkdir(parents=True)
    module = tmp_path / "metakm" / "run" / "provenance.py"
    module.write_text("X = 1\n")
    (tmp_path / ".gitignore").write_text("*.pyc\n")
    assert provenance.git_commit() == "", "no checkout"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "One"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    (tmp_path / "metakm" / "ignored.pyc").write_text("")
    (tmp_path / "beside.py").write_text("")
    assert provenance.git_commit() == commit
    module.write_text("X = 2\n")
    assert provenance.git_commit() == f"{commit}-dirty"
    module.write_text("X = 1\n")
    (tmp_path / "metakm" / "new.py").write_text("")
    assert provenance.git_commit() == f"{commit}-dirty"

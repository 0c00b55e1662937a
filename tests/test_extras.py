"""Commands without the packages of an extra: they say which one to install, before any work."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from metakm.__main__ import main
from metakm.run.folder import RunFolder

pytestmark = pytest.mark.float32
RESULTS = Path(__file__).parents[1] / "results"
SEARCH = ["--algo", "km", "--dataset", "glyphs", "--space", "table3-characters", "--trials", "1", "--out", "new"]


@pytest.fixture
def without(tmp_path, cache, monkeypatch, capsys):
    """Run a command of metakm while a package cannot be imported."""

    def run(package, command, *arguments):
        blocked = tmp_path / "blocked"
        blocked.mkdir(exist_ok=True)
        monkeypatch.chdir(blocked)
        monkeypatch.setenv("METAKM_CACHE", str(cache))
        monkeypatch.setitem(sys.modules, package, None)
        code = main([command, *map(str, arguments)])
        said = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=said.out, stderr=said.err)

    return run


@pytest.mark.parametrize(
    ("package", "extra", "command"),
    [
        ("matplotlib", "report", ["table", RESULTS / "quick", "--plot", "new.png"]),
        ("matplotlib", "report", ["experiments.table", "fig5", RESULTS, "--plot", "new.png"]),
        ("matplotlib", "report", ["report", RESULTS / "quick", "--out", "new.html"]),
        ("jinja2", "report", ["report", RESULTS / "quick", "--out", "new.html"]),
        ("matplotlib", "report", ["search", *SEARCH]),
        ("submitit", "cluster", ["sweep", "--algo", "km", "--dataset", "glyphs", "--out", "new"]),
    ],
)
def test_a_command_says_which_extra_it_needs_before_any_work(without, tmp_path, package, extra, command):
    done = without(package, *command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: Expected {package} for ")
    assert done.stderr.endswith(f"run `pip install 'metakm[{extra}]'`\n")
    assert list((tmp_path / "blocked").iterdir()) == []


def test_a_run_without_matplotlib_finishes_and_says_that_no_picture_was_drawn(without, tmp_path):
    small = ["--ways", "2", "--iterations", "1", "--meta-batch", "1", "--val-tasks", "2", "--eval-tasks", "2"]
    done = without("matplotlib", "run", *small, "--backbone", "conv4-4-stride", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    (folder,) = {path.parent for path in (tmp_path / "out").rglob("result.csv")}
    assert RunFolder(folder).read_row()["status"] == "done"
    assert (folder / "curve.csv").exists()
    assert not (folder / "curve.png").exists()
    assert "curve.png was not drawn: Expected matplotlib" in done.stderr
    assert "metakm[report]" in done.stderr


def test_a_table_without_pictures_needs_no_extra(without):
    assert without("matplotlib", "table", RESULTS / "quick").returncode == 0


def test_the_status_of_a_sweep_needs_no_extra(without):
    assert without("submitit", "sweep", "--algo", "km", "--dataset", "glyphs", "--status").returncode == 0

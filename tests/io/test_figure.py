"""Pictures where matplotlib alone would not even be imported, and runs that go without."""

import subprocess
import sys

import pandas as pd
import pytest

from metakm.run.__main__ import main

pytestmark = pytest.mark.float32

SMALL = "--ways 3 --queries 2 --backbone conv4-4-stride --meta-batch 2 --val-tasks 2 --eval-tasks 2 --iterations 1"
DRAW = (
    "from metakm.run.curve import CurvePoint, curve_png; "
    "print(curve_png([CurvePoint(0, None, None, 0.5, 0.0)], '')[:4])"
)
HOMELESS = "import pathlib\ndef home():\n    raise RuntimeError('no home')\npathlib.Path.home = home\n"


def drawn(code, monkeypatch, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("backend", ["nonsense", "module://matplotlib_inline.backend_inline", ""])
def test_a_picture_needs_no_backend(backend, monkeypatch):
    done = drawn(DRAW + "; import os; print(repr(os.environ['MPLBACKEND']))", monkeypatch, MPLBACKEND=backend)
    assert done.stdout.splitlines() == [r"b'\x89PNG'", repr(backend)]


def test_a_backend_that_there_is_stays_that_of_later_plots(monkeypatch):
    done = drawn(DRAW + "; import matplotlib; print(matplotlib.rcParams['backend'])", monkeypatch, MPLBACKEND="svg")
    assert done.stdout.splitlines()[1] == "svg"


def test_a_picture_needs_no_home(monkeypatch, tmp_path):
    for name in ("MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    drawn(HOMELESS + DRAW, monkeypatch, TMPDIR=str(tmp_path))
    assert not list(tmp_path.iterdir()), "the folder for settings goes with the process"


def test_charts_of_the_report_need_no_backend(monkeypatch):
    drawn("from metakm.report.charts import page_style\nwith page_style(): pass", monkeypatch, MPLBACKEND="nonsense")


def test_a_run_that_cannot_draw_its_curve_is_done_all_the_same(cache, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError("no font")

    monkeypatch.setenv("METAKM_CACHE", str(cache))
    monkeypatch.setattr("metakm.run.folder.curve_png", fail)
    assert main([*SMALL.split(), "--out", str(tmp_path)]) == 0
    folder = tmp_path / "glyphs-3w1s" / "km" / "seed0"
    assert pd.read_csv(folder / "result.csv").status.tolist() == ["done"]
    assert (folder / "weights.safetensors").is_file()
    assert not (folder / "curve.png").exists()
    assert "curve.png could not be drawn (no font); curve.csv has its figures" in capsys.readouterr().err

"""`benchmarks/more_tasks.py`: trained models on more tasks, of which the first are those of their rows."""

from pathlib import Path

import more_tasks
import numpy as np
import pytest

import metakm
from metakm.run.__main__ import main as run
from metakm.run.folder import RunFolder

pytestmark = pytest.mark.float32
TINY = "--backbone conv4-4-stride --ways 3 --queries 2 --val-tasks 2 --eval-tasks 4 --iterations 2 --quiet"
COMMITTED = Path(__file__).parents[2] / "results" / "more-tasks"


@pytest.fixture(autouse=True)
def environment(cache, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(cache))


def test_the_first_tasks_are_those_of_the_run_and_each_run_is_tested_once(tmp_path, capsys):
    for algo in ("km", "anil"):
        assert run([*TINY.split(), "--algo", algo, "--out", str(tmp_path / "runs")]) == 0
    capsys.readouterr()
    runs = tuple(tmp_path / "runs" / "glyphs-3w1s" / algo / "seed0" for algo in ("km", "anil"))
    more_tasks.main(runs, 30, tmp_path / "more")
    assert capsys.readouterr().out.count("\n") == 2
    folders = [RunFolder(tmp_path / "more" / "glyphs-3w1s" / algo / "seed0") for algo in ("km", "anil")]
    found = [folder.read_tasks() for folder in folders]
    for folder, accuracies, trained in zip(folders, found, runs, strict=True):
        np.testing.assert_array_equal(accuracies[:4], RunFolder(trained).read_tasks())
        np.testing.assert_array_equal(accuracies, metakm.evaluate(trained, tasks=30).accuracies)
        assert (folder.read_row()["n_tasks"], folder.read_row()["iterations"]) == (30, 2)
    gap = 100 * (found[0] - found[1])
    page = (tmp_path / "more" / "README.md").read_text()
    assert f"| KM minus ANIL | {gap.mean():+.2f} ± {1.96 * gap.std(ddof=1) / 30**0.5:.2f} (1) |" in page
    assert "MAML" not in page
    more_tasks.main(runs, 30, tmp_path / "more")
    assert capsys.readouterr().out == ""


def test_a_run_that_is_not_finished_is_refused(tmp_path):
    with pytest.raises(metakm.UserError, match="Expected a finished run, got"):
        more_tasks.main((tmp_path / "none",), 30, tmp_path / "more")
    (tmp_path / "more").mkdir()
    with pytest.raises(metakm.UserError, match=r"Expected rows below .*, got none"):
        more_tasks.main((), 30, tmp_path / "more")


def test_the_committed_page_is_that_of_its_rows():
    if not COMMITTED.is_dir():
        pytest.skip("no model was tested on more tasks yet")
    assert (COMMITTED / "README.md").read_text() == more_tasks.page_text(COMMITTED)

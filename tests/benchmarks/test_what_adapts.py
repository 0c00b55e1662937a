"""`benchmarks/what_adapts.py`: lines for what is trained, that go on where they stopped, and their page."""

import sys
from pathlib import Path

import numpy as np
import pytest

import metakm
from metakm.io.csv_file import read_csv
from metakm.run.__main__ import main as run

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import what_adapts
from what_adapts_page import page_text

pytestmark = pytest.mark.float32
TINY = "--backbone conv4-4-stride --ways 3 --queries 2 --val-tasks 2 --eval-tasks 4 --iterations 2 --quiet"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def environment(cache, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(cache))


def test_each_model_has_a_line_for_each_number_of_steps_and_none_twice(tmp_path, capsys):
    for algo in ("km", "anil", "protonet"):
        assert run([*TINY.split(), "--algo", algo, "--out", str(tmp_path)]) == 0
    what_adapts.main(tmp_path, (1, 30))
    rows = read_csv(tmp_path / "what-adapts.csv")
    assert [(row["algo"], row["test_inner_steps"]) for row in rows] == [("km", "1"), ("km", "30")]
    trained = tmp_path / "glyphs-3w1s" / "km" / "seed0"
    found = [metakm.evaluate(trained, queries=1, test_steps=30, adapt=adapt).accuracies for adapt in ("all", "head")]
    assert float(rows[1]["all"]) == pytest.approx(found[0].mean(), abs=1e-6)
    assert float(rows[1]["gap"]) == pytest.approx(np.mean(found[0] - found[1]), abs=1e-6)
    page = (tmp_path / "what-adapts.md").read_text()
    assert f"| `km`, seed 0: head | {100 * float(rows[0]['head']):.2f} | {100 * float(rows[1]['head']):.2f} |" in page
    capsys.readouterr()
    what_adapts.main(tmp_path, (1, 30))
    assert read_csv(tmp_path / "what-adapts.csv") == rows
    assert capsys.readouterr().out == ""


def test_the_committed_page_is_that_of_its_lines():
    table = ROOT / "results" / "table3" / "what-adapts.csv"
    if not table.is_file():
        pytest.skip("no trained model of Table III was tested yet")
    assert table.with_suffix(".md").read_text() == page_text(read_csv(table))

"""`benchmarks/what_adapts.py`: lines for what is trained, that go on where they stopped, and their page."""

from pathlib import Path

import numpy as np
import pytest
import what_adapts
from what_adapts_page import page_text

import metakm
from metakm.io.csv_file import read_csv
from metakm.run.__main__ import main as run

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
    found = [metakm.evaluate(trained, queries=1, inner_steps=30, adapt=adapt).accuracies for adapt in ("all", "head")]
    assert float(rows[1]["all"]) == pytest.approx(found[0].mean(), abs=1e-6)
    assert float(rows[1]["gap"]) == pytest.approx(np.mean(found[0] - found[1]), abs=1e-6)
    page = (tmp_path / "what-adapts.md").read_text()
    heads = " | ".join(f"{100 * float(row['head']):.2f}" for row in rows)
    assert f"| `km`, seed 0, 2 iterations: head | {heads} |" in page
    capsys.readouterr()
    what_adapts.main(tmp_path, (1, 30))
    assert read_csv(tmp_path / "what-adapts.csv") == rows
    assert capsys.readouterr().out == ""
    what_adapts.main(tmp_path, (30,), tasks=3)
    assert [(row["test_inner_steps"], row["n_tasks"]) for row in read_csv(tmp_path / "what-adapts.csv")] == [
        ("1", "4"), ("30", "3"),
    ]  # fmt: skip


def test_two_runs_of_one_seed_have_their_own_lines_in_the_page():
    line = dict.fromkeys(what_adapts.COLUMNS, "0") | {"algo": "km", "dataset": "glyphs", "ways": "3", "shots": "1"}
    rows = [line | {"run_id": name, "iterations": name, "all": f"0.{name}"} for name in ("100", "300")]
    page = page_text(rows)
    assert "| `km`, seed 0, 100 iterations: all | 10.00 |" in page
    assert "| `km`, seed 0, 300 iterations: all | 30.00 |" in page


def test_a_folder_that_is_not_there_is_refused_and_not_made(tmp_path):
    with pytest.raises(metakm.UserError, match="Expected a folder of runs, got"):
        what_adapts.main(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_committed_page_is_that_of_its_lines():
    table = ROOT / "results" / "table3" / "what-adapts.csv"
    if not table.is_file():
        pytest.skip("no trained model of Table III was tested yet")
    assert table.with_suffix(".md").read_text() == page_text(read_csv(table))

"""`benchmarks/cross_domain.py`: a row for each trained run and each other dataset, none twice, and their page."""

from pathlib import Path

import cross_domain
import pytest
from photographs import flower_files, grocery_files, write_files

from metakm.run.__main__ import main as run
from metakm.run.folder import RunFolder

pytestmark = pytest.mark.float32
TINY = "--backbone conv4-4-stride --ways 3 --queries 2 --val-tasks 2 --eval-tasks 4 --iterations 1 --quiet --device cpu"


@pytest.fixture(autouse=True)
def environment(cache, tmp_path, monkeypatch):
    write_files(tmp_path / "data", {**flower_files(each=6), **grocery_files(each=6)})
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    monkeypatch.setenv("METAKM_DATA", str(tmp_path / "data"))


def test_the_committed_page_is_what_the_rows_give():
    results = Path(__file__).parents[2] / "results"
    assert (results / "cross-domain" / "README.md").read_text() == cross_domain.page_text(results)


def test_each_run_has_a_row_for_each_dataset_and_none_twice(tmp_path, capsys):
    results = tmp_path / "results"
    for algo in ("km", "protonet"):
        assert run([*TINY.split(), "--algo", algo, "--out", str(results / "runs")]) == 0
    (results / "runs" / "glyphs-3w1s" / "protonet" / "seed0" / "weights.safetensors").unlink()
    assert cross_domain.main(results / "runs", trained_on="omniglot") == 0
    assert "No run was tested on another dataset yet" in (results / "cross-domain" / "README.md").read_text()
    assert cross_domain.main(results / "runs", trained_on="glyphs", tested_on=("flowers",)) == 0
    assert cross_domain.main(results / "runs", trained_on="glyphs") == 0
    rows = [RunFolder(path.parent).read_row() for path in sorted((results / "cross-domain").rglob("result.csv"))]
    assert [(row["algo"], row["dataset"], row["trained_on"]) for row in rows] == [
        ("km", name, "glyphs-3w1s") for name in cross_domain.TESTED
    ]
    page = (results / "cross-domain" / "README.md").read_text()
    for row in rows:
        assert f"{100 * row['accuracy']:.2f}" in page
    capsys.readouterr()
    assert cross_domain.main(results / "runs", trained_on="glyphs") == 0
    assert capsys.readouterr().out == "", "nothing is tested twice"
    assert cross_domain.main(results / "runs", trained_on="glyphs", tested_on=("no such data",)) == 2

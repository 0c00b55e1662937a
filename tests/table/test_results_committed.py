"""What is committed under results/ is what its commands make of the rows beside it; README and docs say the same."""

import re
from pathlib import Path

import pandas as pd
import pytest

from metakm.experiments.table import main as experiments_main
from metakm.table.__main__ import main

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
ELSEWHERE = {"README", "what-adapts"}  # checked beside what makes them
TABLES = sorted(path for path in RESULTS.rglob("*.md") if path.stem not in ELSEWHERE)
FLAGS = {"table3": ["--all"], "km-maml": ["--compare", "km", "maml"]}  # by the table's name; others are experiments'


def rebuilt(table, out):
    """The text that the commands of the tables make of the rows below the table's folder."""
    written = ["--format", "markdown", "--strict", "--out", str(out)]
    if table.stem in FLAGS:
        assert main([str(table.parent), *FLAGS[table.stem], *written]) == 0
    else:
        assert experiments_main([table.stem, str(table.parent), *written]) == 0
    return out.read_text()


def test_the_tables_that_the_readmes_speak_of_are_there():
    found = {str(table.relative_to(RESULTS)) for table in TABLES}
    assert found >= {"quick/table3.md", *(f"experiments/{name}.md" for name in ("table1", "table2", "fig5"))}


@pytest.mark.parametrize("table", TABLES, ids=lambda path: str(path.relative_to(RESULTS)))
def test_a_table_is_what_its_rows_give(table, tmp_path):
    assert table.read_text() == rebuilt(table, tmp_path / "table.md"), "stale: make it again, see results/README.md"


def test_a_row_that_changed_makes_its_table_stale(tmp_path):
    """The check above can fail."""
    table, rows = RESULTS / "quick" / "table3.md", sorted((RESULTS / "quick").rglob("seed*/*.*"))
    for path in rows:
        copy = tmp_path / path.relative_to(RESULTS / "quick")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    assert rebuilt(tmp_path / table.name, tmp_path / "new.md") == table.read_text()
    next(tmp_path.rglob("km/seed0/result.csv")).unlink()
    assert rebuilt(tmp_path / table.name, tmp_path / "new.md") != table.read_text()


def accuracies_of(text):
    """Each accuracy with its interval in the tables of a README, with the strategy that its row or column names."""
    rows = [re.split(r" *\| *", line) for line in text.splitlines() if line.startswith("| ")]
    for row in rows:
        if not any(" ± " in cell for cell in row):
            header = row
        for column, cell in enumerate(row):
            if " ± " in cell:
                names = row[1] if header[1] == "`--algo`" else header[column]
                yield re.search("`([a-z0-9+-]+)`", names)[1], cell


def in_a_table(algo, cell, tables):
    """Whether a line of the tables has the strategy's cell; differences stand among the claims too."""
    lines = (line for table in tables for line in table.read_text().splitlines())
    own = (line for line in lines if f"| {algo} (" in line or line.startswith(f"| {algo.upper()} above"))
    return any(re.search(rf"(\| |: ){re.escape(cell)}(?! \(seeds\))(?= |,|$)", line) for line in own)


@pytest.mark.parametrize(("page", "least"), [("README.md", 12), ("docs/results.md", 40)])
def test_a_page_has_the_accuracies_of_the_committed_tables(page, least):
    said = list(accuracies_of((ROOT / page).read_text()))
    tables = sorted([*RESULTS.glob("*/table3.md"), *RESULTS.glob("*/km-maml.md")])
    assert len(said) >= least
    assert [(algo, cell) for algo, cell in said if not in_a_table(algo, cell, tables)] == []
    algo, cell = said[0]
    assert not in_a_table(algo, f"1{cell}", tables), "the check can fail"
    assert not in_a_table("protonet", cell, tables)


def test_the_search_tells_what_its_rows_have():
    lines = (RESULTS / "search" / "README.md").read_text().splitlines()
    rows = sorted((RESULTS / "search").rglob("result.csv"))
    assert len(rows) > 50
    for path in rows:
        row, trial = pd.read_csv(path).iloc[0], path.parts[-5]
        named = (f"| `{trial}` |", f"| `{re.sub(f'^{row.algo}-', 'ALGO-', trial)}` |")
        cells = [cell for line in lines if line.startswith(named) for cell in re.split(r" *\| *", line)]
        assert f"{100 * row.val_accuracy:.1f}" in cells, path

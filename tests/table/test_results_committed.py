"""What is committed under results/ is what its commands make of the rows beside it; README and docs say the same."""

import os
import re
from pathlib import Path

import pytest

from metakm.experiments.table import main as experiments_main
from metakm.table.__main__ import main

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
ELSEWHERE = {"README", "what-adapts"}  # checked beside what makes them
TABLES = sorted(path for path in RESULTS.rglob("*.md") if path.stem not in ELSEWHERE)
FLAGS = {"table3": ["--all"]}  # by the table's name; others are experiments'


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


BLOCK = re.compile(r"(?<=<!-- table3 -->\n).*?(?=<!-- end -->)", re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "results/README.md"])
def test_a_page_has_the_table_that_the_rows_give(page, tmp_path):
    """METAKM_GOLDEN=1 writes it anew."""
    out = tmp_path / "table3.md"
    assert main([str(RESULTS / "table3"), "--format", "markdown", "--strict", "--out", str(out)]) == 0
    expected = f"{out.read_text().rstrip()}\n"
    text = (ROOT / page).read_text()
    if os.environ.get("METAKM_GOLDEN") == "1":
        (ROOT / page).write_text(BLOCK.sub(lambda _: expected, text))
    assert BLOCK.search((ROOT / page).read_text())[0] == expected, "stale: METAKM_GOLDEN=1 writes it anew"

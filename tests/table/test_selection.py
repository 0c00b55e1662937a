"""What `python -m metakm.table` shows by default: one protocol in the paper's settings, on one page."""

import csv
import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import pytest
from runs import SIX_HUNDRED, table_of, write_run

from metakm.errors import UserError
from metakm.report.__main__ import main as report
from metakm.table.__main__ import main
from metakm.table.blocks import build_table
from metakm.table.collect import Collection, read_runs
from metakm.table.layouts.compact import WIDTH
from metakm.table.rendering import render_table
from metakm.table.selection import main_table, select_strategies, sort_by_accuracy
from metakm.table.setting import TABLE3

LINES = 45
BETTER = SIX_HUNDRED + 0.1


def labels(table):
    return [row.label for block in table.blocks for row in block.rows if row.protocol is not None]


def as_preset(folder, name):
    """The table of the runs below a folder, as if they were of another preset without changes."""
    found = read_runs(folder)
    runs = [dataclasses.replace(run, row=dataclasses.replace(run.row, preset=name), changes=()) for run in found.runs]
    return Collection(tuple(runs), found.problems)


@pytest.fixture
def four_columns(tmp_path):
    """Two seeds of five strategies in every setting of Table III, as preset table3; and quick runs beside them."""
    for setting in TABLE3:
        own = {"dataset": setting.dataset, "ways": setting.ways, "shots": setting.shots}
        for algo in ("km", "anil", "maml", "km-proto", "protonet"):
            for seed in (0, 1):
                name = f"{setting.dataset}{setting.shots}/{algo}/{seed}"
                write_run(tmp_path / "main" / name, algo, SIX_HUNDRED + seed / 100, seed, **own)
            write_run(tmp_path / "quick" / name, algo, SIX_HUNDRED, **own)
    main_runs, quick = as_preset(tmp_path / "main", "table3"), read_runs(tmp_path / "quick")
    return build_table(Collection((*main_runs.runs, *quick.runs), ()))


def test_rows_of_preset_table3_stand_alone(four_columns):
    table = main_table(four_columns)
    assert labels(table) == [f"{algo} (table3)" for algo in ("maml", "anil", "km", "km-proto", "protonet")]
    assert table.blocks[0].settings == TABLE3
    assert len(table.blocks[0].rows) == 10
    assert table.hidden == 5
    assert {c.first.preset for c in table.comparisons} == {"table3"}
    assert [len(claim.measured) for claim in table.claims] == [1] * 8


def test_the_page_has_at_most_45_lines_of_100_characters(four_columns):
    lines = render_table(main_table(four_columns), layout="compact").splitlines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= WIDTH
    # 12.71 x 0.71 / sqrt(2) over seeds and 0.82 over tasks, in quadrature
    assert "maml (table3)      50.50 +- 6.41 (2)  50.50 +- 6.41 (2)  50.50 +- 6.41 (2)  50.50 +- 6.41 (2)" in lines
    assert "- 5 rows of other protocols or settings: --all" in lines
    assert f"anil (table3) {' '.join(['+0.00 +- 3.04 ~ (2)'] * 4)}" in [" ".join(line.split()) for line in lines]


def test_the_committed_rows_make_a_page():
    command = [sys.executable, "-m", "metakm.table"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= WIDTH
    assert lines[0] == "Table III: accuracy, %"
    assert any(line.startswith("KM (the paper)") and "97.01 +- 0.01" in line for line in lines)
    assert any(line.endswith("rows of other protocols or settings: --all") for line in lines)


def test_without_table3_the_other_presets_are_shown_unchanged(tmp_path):
    write_run(tmp_path / "a", "km", SIX_HUNDRED)
    write_run(tmp_path / "b", "km", SIX_HUNDRED, preset="paper")
    write_run(tmp_path / "c", "km", SIX_HUNDRED, iterations=9)
    write_run(tmp_path / "d", "km", SIX_HUNDRED, dataset="tiny-imagenet")
    write_run(tmp_path / "e", "anil")  # four tasks
    table = main_table(table_of(tmp_path))
    assert labels(table) == ["km (paper)", "km (quick)"]
    assert table.hidden == 3


def test_a_folder_of_changed_runs_or_of_trials_is_no_empty_table(tmp_path):
    write_run(tmp_path / "trial", "km")
    assert labels(main_table(table_of(tmp_path))) == ["km (quick, eval-tasks 4)"]
    write_run(tmp_path / "changed", "km", SIX_HUNDRED, iterations=9)
    assert labels(main_table(table_of(tmp_path))) == ["km (quick, iterations 9)"]


def test_a_trial_is_a_cell_of_fewer_than_100_tasks(tmp_path):
    write_run(tmp_path / "99", "km", SIX_HUNDRED[:99])
    write_run(tmp_path / "100", "anil", SIX_HUNDRED[:100])
    assert labels(main_table(table_of(tmp_path))) == ["anil (quick, eval-tasks 100)"]


def test_a_column_without_a_measurement_is_left_out_unless_wanted(tmp_path):
    write_run(tmp_path, "km", SIX_HUNDRED, dataset="mini-imagenet", ways=5, shots=5)
    whole = table_of(tmp_path)
    table = main_table(whole)
    assert table.blocks[0].settings == TABLE3[3:]
    assert [row.label for row in table.blocks[0].rows] == ["MAML [8]", "MAML [10]", "ANIL [10]", "km (quick)"]
    assert {claim.setting for claim in table.claims} == set(TABLE3[3:])
    assert main_table(whole, paper_columns=True).blocks[0].settings == TABLE3


def test_a_folder_of_other_settings_shows_them(tmp_path):
    write_run(tmp_path, "km", SIX_HUNDRED, dataset="glyphs", ways=20)
    table = main_table(table_of(tmp_path))
    assert [block.title for block in table.blocks] == ["glyphs 20-way 1-shot"]
    assert not table.claims
    assert "km (quick)  50.00 +- 0.82 (1)" in render_table(table, layout="compact").splitlines()


def test_a_folder_without_a_run_shows_what_was_published(tmp_path):
    table = main_table(table_of(tmp_path))
    assert table.blocks[0].settings == TABLE3
    assert len(table.blocks[0].rows) == 5
    assert "hidden" not in render_table(table, layout="compact")


def test_only_some_strategies(tmp_path):
    for algo in ("km", "anil", "maml"):
        write_run(tmp_path / algo, algo, SIX_HUNDRED)
    table = main_table(select_strategies(table_of(tmp_path), ["km"]))
    assert [row.label for row in table.blocks[0].rows] == ["KM (the paper)", "km (quick)"]
    assert table.hidden == 0
    assert {c.second.algo for c in table.comparisons} == {"anil", "maml"}
    with pytest.raises(UserError, match="Expected --only to be one of anil, km, maml, got 'kn'"):
        select_strategies(table_of(tmp_path), ["kn"])


def test_best_first_by_column_and_published_rows_above(tmp_path):
    write_run(tmp_path / "a", "maml", SIX_HUNDRED)
    write_run(tmp_path / "b", "anil", BETTER)
    write_run(tmp_path / "c", "km", BETTER)
    write_run(tmp_path / "d", "km", BETTER, shots=5)
    write_run(tmp_path / "e", "protonet", BETTER, shots=5)
    table = sort_by_accuracy(main_table(table_of(tmp_path)))
    assert labels(table) == ["km (quick)", "anil (quick)", "maml (quick)", "protonet (quick)"]
    assert [row.protocol is None for row in table.blocks[0].rows] == [True] * 5 + [False] * 4


@pytest.mark.parametrize("form", ["table", "markdown", "latex", "csv", "json"])
def test_every_format_and_the_picture_follow(tmp_path, capsys, form):
    write_run(tmp_path / "a", "km", SIX_HUNDRED)
    write_run(tmp_path / "b", "km", SIX_HUNDRED, iterations=9)
    assert main([str(tmp_path), "--format", form, "--plot", str(tmp_path / "plot.svg")]) == 0
    shown = capsys.readouterr().out
    assert "iterations" not in shown
    assert "1 row of other protocols or settings: " in shown
    assert "iterations" not in (tmp_path / "plot.svg").read_text()
    assert main([str(tmp_path), "--all", "--format", form, "--plot", str(tmp_path / "plot.svg")]) == 0
    assert "iterations" in capsys.readouterr().out
    assert "iterations" in (tmp_path / "plot.svg").read_text()


def test_records_are_those_of_the_rows_shown(tmp_path, capsys):
    for algo in ("km", "anil"):
        write_run(tmp_path / algo, algo, SIX_HUNDRED)
        write_run(tmp_path / f"{algo}-changed", algo, SIX_HUNDRED, iterations=9)
    assert main([str(tmp_path), "--format", "csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [line["runs"] for line in lines if line["kind"] == "measured"] == ["anil", "km"]
    assert [line["first"] for line in lines if line["kind"] == "comparison" and line["n_tasks"]] == ["km (quick)"]


def test_remarks_are_counted_by_name(tmp_path):
    write_run(tmp_path / "a", "km", SIX_HUNDRED)
    write_run(tmp_path / "b", "km", SIX_HUNDRED, row={"started_at": "2026-11-21T00:00:00+00:00"})
    write_run(tmp_path / "c", "anil", SIX_HUNDRED, row={"threads": 2, "git_commit": "beef-dirty"})
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "result.csv").write_text("nothing\n")
    text = render_table(main_table(table_of(tmp_path)), layout="compact")
    said = "runs left out: 1, files not read: 1, notes on the runs: 1, differences between compared runs: 2"
    assert said in text.replace("\n  ", " ")


def test_long_names_are_broken_in_the_first_column(tmp_path):
    write_run(tmp_path / "a", "km", SIX_HUNDRED, iterations=9, zero_head=True, precision="bf16", meta_lr=0.5)
    lines = render_table(main_table(table_of(tmp_path), paper_columns=True), layout="compact").splitlines()
    assert max(map(len, lines)) <= WIDTH
    start = next(i for i, line in enumerate(lines) if line.startswith("km (quick, iterations 9,"))
    assert lines[start + 1].startswith("  ")
    assert "50.00 +- 0.82 (1)" in lines[start]


def test_the_report_follows(tmp_path, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(tmp_path / "cache"))
    write_run(tmp_path / "runs" / "a", "km", SIX_HUNDRED)
    write_run(tmp_path / "runs" / "b", "km", SIX_HUNDRED, iterations=9)
    page = tmp_path / "report.html"
    for flags, shown in (([], False), (["--all"], True)):
        assert report([str(tmp_path / "runs"), "-o", str(page), "--episodes", "0", *flags]) == 0
        assert ("iterations 9" in page.read_text()) == shown

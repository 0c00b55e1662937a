"""From folders of runs to Table III, its formats and the list below it."""

import csv
import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import SIX_HUNDRED, table_of, write_run

from metakm.errors import UserError
from metakm.table import forest
from metakm.table.__main__ import main
from metakm.table.blocks import build_table
from metakm.table.collect import Collection, read_runs
from metakm.table.forest import forest_picture
from metakm.table.pairing import comparisons_between
from metakm.table.rendering import render_comparisons, render_table

GOLDEN = Path(__file__).parents[1] / "golden"
PAPER_MOVED = "Expected flags of Table III, got --paper; the paper's other tables are made by python -m metakm.exp"
FORMATS = {"table": "txt", "csv": "csv", "markdown": "md", "latex": "tex", "json": "json"}


def without_digests(text):
    """A run_id ends in a digest of its whole config, which changes with every new field."""
    return re.sub(r"(seed\d+)-[0-9a-f]{8}\b", r"\1-digest", text)


def small_study(folder):
    """Two seeds of each strategy, and one of everything that can go wrong."""
    for seed in (0, 1):
        write_run(folder / f"maml/{seed}", "maml", [0.5, 0.625, 0.5, 0.625 + 0.125 * seed], seed)
        write_run(folder / f"anil/{seed}", "anil", [0.625, 0.75, 0.75, 0.75 + 0.125 * seed], seed)
        write_run(folder / f"km/{seed}", "km", [0.75, 0.875, 0.875, 0.9375 + 0.03125 * seed], seed)
    write_run(folder / "km/3", "km", [0.75, 0.875, 0.875, 0.9375], 3)
    write_run(folder / "bf16", "km", [0.75, 0.8, 0.875, 0.9], precision="bf16", row={"threads": 2})
    write_run(folder / "copy", "km", [0.75, 0.875, 0.875, 0.9375], row={"started_at": "2026-11-21T00:00:00+00:00"})
    write_run(folder / "failed", "km", seed=2, row={"status": "failed", "accuracy": None, "ci95": None, "n_tasks": 0})
    write_run(folder / "short", "km", [0.5, 0.25], dataset="mini-imagenet", shots=5, preset="paper", iterations=9)
    write_run(folder / "tiny", "km", dataset="tiny-imagenet", row={"git_commit": "c0ffee-dirty"})
    write_run(folder / "plug", "my_|algo&", dataset="tiny-imagenet", row={"threads": 2})
    write_run(folder / "plug1", "my_|algo&", dataset="tiny-imagenet", seed=1, row={"git_commit": "beef"})
    write_run(folder / "foreign").joinpath("result.csv").write_text("method,accuracy\nkm,97\n")
    return folder


def test_a_missing_cell_stays_empty(tmp_path):
    write_run(tmp_path, accuracies=SIX_HUNDRED)
    lines = render_table(table_of(tmp_path), "markdown").splitlines()
    assert "| km (quick) | 50.00 ± 0.82 (tasks) |  |  |  |" in lines
    assert "| KM (the paper) | 97.01 ± 0.01 \\>ANIL \\>MAML | 98.10 ± 0.02 \\>ANIL |  |  |" in lines


def test_a_strategy_of_a_plugin_needs_no_plugin_here(tmp_path):
    """Its run knew what the preset is for it; only an older row of it looks changed where it refused the preset's."""
    refused = {"normal_head": False}
    folder = write_run(tmp_path / "a", "fixed", SIX_HUNDRED, preset="paper", row={"changes": "{}"}, **refused)
    assert "| fixed (paper) |" in render_table(table_of(tmp_path), "markdown")
    write_run(folder, "fixed", SIX_HUNDRED, preset="paper", row={"changes": None}, **refused)
    assert "| fixed (paper, no normal-head) |" in render_table(table_of(tmp_path), "markdown")


@pytest.mark.parametrize("form", FORMATS)
def test_golden(tmp_path, form):
    """Means, intervals and ratios in the files were checked by hand; METAKM_GOLDEN=1 writes them anew."""
    found = render_table(table_of(small_study(tmp_path)), form)
    path = GOLDEN / f"table.{FORMATS[form]}"
    if os.environ.get("METAKM_GOLDEN"):
        path.write_text(found)
    assert without_digests(found) == without_digests(path.read_text())


@pytest.mark.parametrize("form", FORMATS)
def test_golden_comparison(tmp_path, form):
    table = table_of(small_study(tmp_path))
    found = render_comparisons(*comparisons_between(table.cells, "km", "anil"), table, form)
    path = GOLDEN / f"compare.{FORMATS[form]}"
    if os.environ.get("METAKM_GOLDEN"):
        path.write_text(found)
    assert without_digests(found) == without_digests(path.read_text())


def test_csv_and_json_hold_the_same(tmp_path):
    table = table_of(small_study(tmp_path))
    lines = list(csv.DictReader(io.StringIO(render_table(table, "csv"))))
    for kind, records in json.loads(render_table(table, "json")).items():
        of_kind = [line for line in lines if line["kind"] == kind]
        assert len(of_kind) == len(records)
        for line, record in zip(of_kind, records, strict=True):
            assert {k: "" if v is None else str(v) for k, v in record.items()}.items() <= line.items()


def test_the_forest_plot_has_the_interval_over_seeds_as_the_thick_bar_and_that_over_tasks_with_caps(
    tmp_path, monkeypatch
):
    figures = []
    monkeypatch.setattr(forest, "figure_bytes", lambda figure, *_, **__: figures.append(figure))
    table = table_of(small_study(tmp_path))
    forest_picture(table)
    cells = [cell for cell in table.cells if None not in (cell.seeds_ci95, cell.tasks_ci95)]
    assert any(abs(cell.seeds_ci95 - cell.tasks_ci95) > 0.1 for cell in cells)
    for cell in cells:
        (axes,) = [axes for axes in figures[0].axes if axes.get_title(loc="left") == cell.setting.title]
        bars = [bar for drawn in axes.containers for bar in drawn[2]]
        widths = [
            (round(float(np.ptp(bar.get_segments()[0][:, 0])), 6), bar.get_linewidth()[0] == 4)
            for bar in bars
            if len(bar.get_segments()) and np.isclose(bar.get_segments()[0][:, 0].mean(), cell.mean)
        ]
        assert (round(2 * cell.seeds_ci95, 6), True) in widths
        assert (round(2 * cell.tasks_ci95, 6), False) in widths


def test_forest_plot_is_a_picture_in_each_format(tmp_path):
    table = table_of(small_study(tmp_path))
    assert forest_picture(table, "pdf").startswith(b"%PDF")
    write_run(tmp_path / "dollars", "a$\\frac$")
    svg = forest_picture(table_of(tmp_path), "svg").decode()
    assert svg.count("<!-- km (quick, eval-tasks 4) -->") == 2  # in Omniglot and in tiny-ImageNet
    assert "<!-- tiny-ImageNet 5-way 1-shot -->" in svg
    assert "<!-- a$\\frac$ (quick, eval-tasks 4) -->" in svg  # no formula


def test_no_picture_of_no_rows(tmp_path):
    table = table_of(tmp_path)
    with pytest.raises(UserError, match="Expected rows to draw, got none"):
        forest_picture(dataclasses.replace(table, blocks=()))


# Any rows, in any order


run_lists = st.lists(
    st.fixed_dictionaries(
        {
            "algo": st.sampled_from(["km", "anil", "maml", "other"]),
            "seed": st.integers(0, 2),
            "dataset": st.sampled_from(["omniglot", "tiny-imagenet"]),
            "preset": st.sampled_from(["quick", "paper"]),
            "bn_mode": st.sampled_from(["transductive", "support"]),
            "accuracies": st.lists(st.integers(0, 100).map(lambda n: n / 100), min_size=2, max_size=3),
            "row": st.fixed_dictionaries(
                {
                    "status": st.sampled_from(["done", "done", "done", "failed"]),
                    "threads": st.integers(1, 2),
                    "episodes_hash": st.sampled_from(["a", "b"]),
                    "started_at": st.sampled_from(["2026-11-20T12:00:00+00:00", "2026-11-21T12:00:00+00:00"]),
                }
            ),
        }
    ),
    max_size=6,
)


@settings(deadline=None, max_examples=15)
@given(runs=run_lists, data=st.data())
def test_any_rows_in_any_order_give_one_table_and_none_is_lost(tmp_path_factory, runs, data):
    order = data.draw(st.permutations(range(len(runs))))
    folders = tmp_path_factory.mktemp("a"), tmp_path_factory.mktemp("b")
    for folder, numbers in zip(folders, (range(len(runs)), order), strict=True):
        for number in numbers:  # another order of writing, and so of the folder's entries
            write_run(folder / f"run{number}", **runs[number])
        if runs:
            (folder / "run0" / "result.csv").write_text("damaged")
    one, other = (read_runs(folder) for folder in folders)
    shuffled = Collection(tuple(data.draw(st.permutations(other.runs))), other.problems)
    tables = [build_table(collection) for collection in (one, other, shuffled)]
    for form in FORMATS:
        assert len({render_table(table, form) for table in tables}) == 1
    for table in tables:
        counted = [run.name for cell in table.cells for run in cell.runs]
        listed = [item.run.name for item in table.left_out] + [problem.name for problem in table.problems]
        assert sorted(counted + listed) == sorted(f"run{number}" for number in range(len(runs)))
        records = list(csv.DictReader(io.StringIO(render_table(table, "csv"))))
        named = [
            name for r in records if r["kind"] in ("measured", "left out", "problem") for name in r["runs"].split("; ")
        ]
        assert sorted(named) == sorted(counted + listed)


# The command


def test_command_prints_writes_and_says_what_it_could_not_read(tmp_path, capsys):
    study = small_study(tmp_path / "study")
    out, plot = tmp_path / "new" / "table3.md", tmp_path / "table3.png"
    assert main([str(study), "--all", "--format", "markdown", "--out", str(out), "--plot", str(plot)]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "study/foreign/result.csv: Expected the columns of a run's row, got 'method'" in printed.err
    assert without_digests(out.read_text()) == without_digests((GOLDEN / "table.md").read_text())
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main([str(study), "--all"]) == 0
    assert without_digests(capsys.readouterr().out) == without_digests((GOLDEN / "table.txt").read_text())
    assert main([str(study), "--compare", "km", "anil", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["comparison"][0]["difference_points"] == 12.890625
    assert main([str(study), "--strict"]) == 1


def test_a_folder_without_runs_is_told(tmp_path, capsys):
    assert main([str(tmp_path)]) == 0
    assert "No result.csv was found below" in capsys.readouterr().err
    write_run(tmp_path / "run")
    assert main([str(tmp_path)]) == 0
    assert "No result.csv" not in capsys.readouterr().err


def test_strict_minds_unread_files_alone(tmp_path, capsys):
    write_run(tmp_path, row={"git_commit": "", "status": "failed"})
    assert main([str(tmp_path), "--all", "--strict"]) == 0
    assert "status failed" in capsys.readouterr().out


def test_baseline_is_what_differences_are_taken_to(tmp_path, capsys):
    write_run(tmp_path / "km", "km", [0.5, 0.75])
    write_run(tmp_path / "maml", "maml", [0.25, 0.75])
    assert main([str(tmp_path), "--all", "--baseline", "maml", "--format", "markdown"]) == 0
    printed = capsys.readouterr().out
    assert "| Minus maml, points |" in printed
    assert "| +12.50 ± 24.50 (tasks) |" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--plot", "x.doc"], "Expected --plot to end in .png, .svg or .pdf, got x.doc"),
        (["--baseline", "anli"], "Expected --baseline to be one of anil, km, maml, got 'anli'; did you mean 'anil'?"),
        (["--compare", "km", "anil"], "Expected a measured strategy or row to be one of"),
        (["--only", "kn"], "Expected --only to be one of anil, km, maml, got 'kn'"),
        (["--sort", "--compare", "km", "anil"], "Expected --sort without --compare, got both"),
        (["--paper", "table1"], PAPER_MOVED),
        (["--paper=fig5"], PAPER_MOVED),
        (["--all", "--paper-columns"], "Expected --all or --paper-columns, got both"),
        (["--out", "/dev/null/x"], "Expected --out to be a file in a folder, got /dev/null/x, but /dev/null is a file"),
        (["--plot", "p.png", "--out", "."], "Expected --out to be a file, got the folder ."),
    ],
)
def test_mistakes_end_in_one_line_and_code_2(tmp_path, capsys, flags, message):
    write_run(tmp_path / "run")
    assert main([str(tmp_path), *flags]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {message}")
    assert printed.out == ""


def test_a_protected_folder_is_refused_before_the_runs_are_read(tmp_path, capsys, monkeypatch):
    write_run(tmp_path / "run")
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode == os.W_OK and path == tmp_path))
    assert main([str(tmp_path), "--out", str(tmp_path / "new" / "t.md")]) == 2
    assert capsys.readouterr().err.startswith("error: Expected --out to be a file in a folder that can be written, got")


def test_module_runs_on_the_committed_rows():
    command = [sys.executable, "-m", "metakm.table", "results/quick", "--compare", "km", "anil", "--strict"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "km (quick)  anil (quick)  +0.63 +- 0.27 (tasks)" in done.stdout


def test_what_was_tested_on_other_data_is_shown_beside_its_own_test_and_nowhere_else(tmp_path, capsys):
    write_run(tmp_path / "own", "km", dataset="omniglot", preset="table3")
    moved = {"dataset": "cub", "ways": 20, "trained_on": "omniglot-20w1s", "run_id": "x-on-cub", "split_hash": "birds"}
    write_run(tmp_path / "moved", "km", (0.25, 0.5, 0.25, 0.5), preset="table3", row=moved)
    for name in ("config.json", "tasks.csv"):
        (tmp_path / "moved" / name).unlink()
    assert main([str(tmp_path), "--layout", "cross-domain", "--format", "csv"]) == 0
    header, line, *_ = capsys.readouterr().out.splitlines()
    assert header.index("CUB-200-2011 20-way 1-shot") < header.index("Omniglot 20-way 1-shot")
    assert 'omniglot-20w1s,"km (table3, eval-tasks 4)",37.50 ± 14.15 (1),68.75 ± 15.81 (1)' in line
    assert main([str(tmp_path), "--all", "--format", "csv"]) == 0
    assert "cub" not in capsys.readouterr().out.lower()


def test_runs_trained_on_other_data_of_the_same_name_are_not_averaged(tmp_path, capsys):
    def write(name, seed, data, episodes="birds", **row):
        own = {"split_hash": data, "episodes_hash": f"episodes-{data}"}
        write_run(tmp_path / name / "own", "km", seed=seed, dataset="omniglot", preset="table3", row=own)
        moved = {
            "dataset": "cub", "ways": 20, "trained_on": "omniglot-20w1s", "run_id": f"{name}-on-cub", **row,
            "split_hash": "birds", "trained_split_hash": data, "episodes_hash": episodes,
        }  # fmt: skip
        write_run(tmp_path / name / "moved", "km", seed=seed, preset="table3", row=moved)
        for file in ("config.json", "tasks.csv"):
            (tmp_path / name / "moved" / file).unlink()

    write("one", 0, "first")
    write("two", 1, "second")
    assert main([str(tmp_path), "--layout", "cross-domain", "--format", "csv"]) == 0
    shown = capsys.readouterr().out
    lines = [
        line.removeprefix('"Trained on one dataset, tested on others: accuracy, %",') for line in shown.splitlines()
    ]
    lines = [line for line in lines if line.startswith("omniglot")]
    assert [line.split(",")[0] for line in lines] == ["omniglot-20w1s (first)", "omniglot-20w1s (second)"]
    assert all(line.count("68.75 ± 15.81 (1)") == 2 for line in lines), "each beside its own test"
    assert "Within a column, all strategies are tested on the same tasks" not in shown, "Omniglot's are others"
    write("three", 1, "first", episodes="other birds")
    assert main([str(tmp_path), "--layout", "cross-domain"]) == 0
    assert "Not all rows of a column are tested on the same tasks in CUB-200-2011 20-way 1-shot" in (
        " ".join(capsys.readouterr().out.split())
    )

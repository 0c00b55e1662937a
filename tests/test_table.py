"""From folders of runs to Table III, its formats and the list below it."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import write_run
from scipy import stats

from metakm import UserError
from metakm.results import (
    TABLE3,
    Collection,
    Setting,
    build_table,
    comparisons_between,
    interval_over_tasks,
    published_results,
    read_runs,
)
from metakm.results.forest import forest_picture
from metakm.results.rendering import render_comparisons, render_table
from metakm.table import main

GOLDEN = Path(__file__).parent / "golden"
FORMATS = {"table": "txt", "csv": "csv", "markdown": "md", "latex": "tex", "json": "json"}
SIX = np.full(600, 0.5) + np.tile([0.125, 0, -0.125], 200)  # 600 tasks, so that nothing of the preset is changed


def table_of(folder, **options):
    return build_table(read_runs(folder), **options)


def the_cell(folder):
    (cell,) = table_of(folder).cells
    return cell


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


# Numbers


def test_published_values_are_the_papers():
    values = {(p.method, p.setting): (p.accuracy, p.plus_minus) for p in published_results()}
    assert values["KM (the paper)", Setting("omniglot", 20, 1)] == (97.01, 0.01)
    assert values["MAML [8]", Setting("mini-imagenet", 5, 1)] == (48.70, 1.84)
    assert len(values) == 3 * 4 + 2 * 2  # the paper's own mini-ImageNet values are not legible
    assert {p.setting for p in published_results()} == set(TABLE3)
    assert all(p.source and p.meaning for p in published_results())


def test_one_seed_has_the_rows_own_interval(tmp_path):
    write_run(tmp_path, accuracies=SIX)
    cell = the_cell(tmp_path)
    assert (cell.mean, cell.n_seeds, cell.n_tasks, cell.seeds_ci95) == (50.0, 1, 600, None)
    assert cell.tasks_ci95 == pytest.approx(100 * interval_over_tasks(SIX))
    assert cell.protocol.label == "km (quick)"


def test_seeds_are_averaged_with_both_intervals(tmp_path):
    tasks = np.array([[0.5, 0.75, 0.25, 0.5], [0.75, 0.75, 0.5, 0.5], [1.0, 0.5, 0.5, 0.5]])
    for seed, accuracies in enumerate(tasks):
        write_run(tmp_path / str(seed), accuracies=accuracies, seed=seed)
    cell = the_cell(tmp_path)
    assert cell.mean == pytest.approx(100 * tasks.mean())
    interval = stats.ttest_1samp(100 * tasks.mean(axis=1), 0).confidence_interval(0.95)
    assert cell.seeds_ci95 == pytest.approx((interval.high - interval.low) / 2)
    # by task the means over seeds are 0.75, 2/3, 5/12, 1/2
    assert cell.tasks_ci95 == pytest.approx(196 * np.std([3 / 4, 2 / 3, 5 / 12, 1 / 2], ddof=1) / 2)


def test_parameters_are_related_to_maml_on_the_same_backbone(tmp_path):
    for algo in ("km", "maml"):
        write_run(tmp_path / algo, algo)
    write_run(tmp_path / "implicit", "maml", implicit=True, row={"adapted_parameters": 200000})
    write_run(tmp_path / "wide", "km", backbone="conv4-128-stride")
    ratios = {cell.protocol.label: cell.ratio_to_maml for cell in table_of(tmp_path).cells}
    assert ratios == {
        "maml (quick, eval-tasks 4)": 1,
        "maml (quick, eval-tasks 4, implicit)": 200000 / 112724,
        "km (quick, eval-tasks 4)": 2204 / 112724,
        "km (quick, backbone conv4-128-stride, eval-tasks 4)": None,
    }


def test_paired_comparison_by_hand(tmp_path):
    # by task the differences over both seeds are 10, 20, 30 points; by seed 25 and 15
    for seed, ours in enumerate([[0.55, 0.65, 0.75], [0.45, 0.55, 0.65]]):
        write_run(tmp_path / f"km{seed}", "km", ours, seed)
        write_run(tmp_path / f"anil{seed}", "anil", [0.4, 0.4, 0.4], seed)
    ((c,), refused) = comparisons_between(table_of(tmp_path).cells, "km", "anil")
    assert refused == ()
    assert (c.seeds, c.caveats) == ((0, 1), ())
    assert c.difference == pytest.approx(20)
    assert c.tasks_ci95 == pytest.approx(1.96 * 10 / np.sqrt(3))
    assert c.seeds_ci95 == pytest.approx(12.706205 * 5, rel=1e-6)
    assert c.verdict == "not separated"  # beyond the interval over tasks, within that over seeds


@pytest.mark.parametrize(
    ("shift", "verdict", "mark"), [(0.2, "above", ">"), (-0.2, "below", "<"), (0, "not separated", "~")]
)
def test_km_is_marked_beside_the_claim(tmp_path, shift, verdict, mark):
    anil = np.array([0.5, 0.52, 0.48, 0.5])
    write_run(tmp_path / "anil", "anil", anil)
    write_run(tmp_path / "km", "km", anil + shift + np.array([0.01, -0.01, 0, 0]))
    table = table_of(tmp_path)
    (claim,) = [claim for claim in table.claims if claim.measured]
    assert (claim.peer, claim.setting, claim.claimed) == ("anil", TABLE3[0], True)
    assert claim.measured[0].verdict == verdict
    text = render_table(table)
    assert f"(tasks) {mark}ANIL" in text
    assert f"{verdict} (not the published protocol)" in text


def test_the_papers_claims_are_those_of_its_text(tmp_path):
    claimed = {(claim.peer, claim.setting) for claim in table_of(tmp_path).claims if claim.claimed}
    assert claimed == {*(("anil", setting) for setting in TABLE3), ("maml", TABLE3[0]), ("maml", TABLE3[3])}


# What is never averaged, and what is never averaged in silence


@pytest.mark.parametrize(
    "change",
    [
        {"preset": "paper", "iterations": 500},
        {"bn_mode": "support"},
        {"backbone": "conv4-32-stride"},
        {"precision": "bf16"},
        {"first_order": True},
        {"implicit": True},
        {"schedule": "constant"},
        {"queries": 1},
        {"val_tasks": 7},
    ],
)
def test_other_protocols_never_share_a_cell(tmp_path, change):
    write_run(tmp_path / "a", seed=0)
    write_run(tmp_path / "b", seed=1, **change)
    table = table_of(tmp_path)
    assert [cell.n_seeds for cell in table.cells] == [1, 1]
    assert len({cell.protocol.label for cell in table.cells}) == 2
    assert any("2 protocols, each its own row" in note for note in table.notes)


def test_only_the_unchanged_paper_preset_is_the_published_protocol(tmp_path):
    write_run(tmp_path / "a", preset="paper", accuracies=SIX)
    write_run(tmp_path / "b", preset="paper", accuracies=SIX, iterations=10)
    write_run(tmp_path / "c", accuracies=SIX)
    found = {cell.protocol.label: cell.protocol.published for cell in table_of(tmp_path).cells}
    assert found == {"km (paper)": True, "km (paper, iterations 10)": False, "km (quick)": False}


@pytest.mark.parametrize("column", ["git_commit", "threads", "device", "torch_version", "metakm_version", "split_hash"])
def test_mixed_provenance_in_a_cell_is_listed(tmp_path, column):
    write_run(tmp_path / "a", seed=0)
    write_run(tmp_path / "b", seed=1, row={column: 64 if column == "threads" else "other"})
    (note,) = table_of(tmp_path).notes
    assert f"{column} differs (" in note
    assert f"{64 if column == 'threads' else 'other'}: b" in note


def test_other_episodes_in_a_cell_leave_no_interval_over_tasks(tmp_path):
    write_run(tmp_path / "a", seed=0)
    write_run(tmp_path / "b", seed=1, row={"episodes_hash": "others"})
    table = table_of(tmp_path)
    assert table.cells[0].tasks_ci95 is None
    assert "episodes_hash differs" in table.notes[0]


def test_adapted_parameters_that_differ_are_not_chosen_from(tmp_path):
    write_run(tmp_path / "a", seed=0)
    write_run(tmp_path / "b", seed=1, row={"adapted_parameters": 9})
    table = table_of(tmp_path)
    assert (table.cells[0].adapted_parameters, table.cells[0].ratio_to_maml) == (None, None)
    assert "adapted_parameters differs" in table.notes[0]


def test_unfinished_and_double_runs_are_left_out_by_name(tmp_path):
    write_run(tmp_path / "first", accuracies=[0.5, 0.5])
    write_run(tmp_path / "again", accuracies=[1.0, 1.0], row={"started_at": "2027-01-01T00:00:00+00:00"})
    for status in ("running", "interrupted", "failed"):
        write_run(tmp_path / status, seed=3, row={"status": status, "accuracy": None, "ci95": None, "n_tasks": 0})
    table = table_of(tmp_path)
    assert [(cell.mean, cell.n_seeds) for cell in table.cells] == [(50.0, 1)]
    reasons = {item.run.name: item.reason for item in table.left_out}
    assert reasons.pop("again").startswith("duplicate of first: the same protocol and seed")
    assert reasons == {status: f"status {status}" for status in ("running", "interrupted", "failed")}


def test_what_is_not_known_of_a_run_is_said(tmp_path):
    write_run(tmp_path / "a", row={"git_commit": "beef-dirty"})
    for name in ("tasks.csv", "config.json"):
        (tmp_path / "a" / name).unlink()
    assert table_of(tmp_path).notes == (
        "a: made from beef-dirty",
        "a: no tasks.csv, so it is in no paired comparison",
        "a: no config.json, so not all of its settings are known",
    )


def test_tiny_imagenet_and_other_settings_have_blocks_of_their_own(tmp_path):
    write_run(tmp_path / "a", dataset="tiny-imagenet")
    write_run(tmp_path / "b", dataset="mini-imagenet")
    write_run(tmp_path / "c", dataset="omniglot", ways=5)
    first, *others = table_of(tmp_path).blocks
    measured = [setting for row in first.rows if row.protocol for setting in row.cells]
    assert measured == [Setting("mini-imagenet", 5, 1)]
    assert [block.title for block in others] == ["Omniglot 5-way 1-shot", "tiny-ImageNet 5-way 1-shot"]
    assert all(row.protocol is not None for block in others for row in block.rows)


def test_a_missing_cell_stays_empty(tmp_path):
    write_run(tmp_path, accuracies=SIX)
    lines = render_table(table_of(tmp_path), "markdown").splitlines()
    assert "| km (quick) | 50.00 ± 0.82 (tasks) |  |  |  |" in lines
    assert "| KM (the paper) | 97.01 ± 0.01 \\>ANIL \\>MAML | 98.10 ± 0.02 \\>ANIL |  |  |" in lines


# Pairs that are refused


def refusal(folder, first="km", second="anil"):
    with pytest.raises(UserError) as caught:
        comparisons_between(table_of(folder).cells, first, second)
    return str(caught.value)


def test_other_episodes_are_refused_in_any_seed(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"km{seed}", "km", seed=seed)
        write_run(
            tmp_path / f"anil{seed}", "anil", seed=seed, row={"episodes_hash": f"episodes-omniglot-20w1s{'x' * seed}"}
        )
    assert (
        "to have one episodes_hash, got episodes-omniglot-20w1s: km0, km1, anil0; episodes-omniglot-20w1sx: anil1"
        in (refusal(tmp_path))
    )
    table = table_of(tmp_path)
    assert table.comparisons == ()
    assert any(note.startswith("not compared: Expected km (quick") for note in table.notes)


def test_pairs_need_tasks_seeds_and_one_protocol(tmp_path):
    write_run(tmp_path / "km", "km")
    write_run(tmp_path / "anil", "anil", seed=1)
    assert "to have a seed in common, got [0] and [1]" in refusal(tmp_path)
    write_run(tmp_path / "anil0", "anil")
    (tmp_path / "anil0" / "tasks.csv").unlink()
    assert "Expected tasks.csv beside anil0/result.csv, got none" in refusal(tmp_path)
    write_run(tmp_path / "maml", "maml", precision="bf16")
    assert "with one protocol in Omniglot 20-way 1-shot" in refusal(tmp_path, "km", "maml")
    assert "did you mean 'anil'" in refusal(tmp_path, "km", "anli")


def test_named_rows_are_compared_across_protocols_with_caveats(tmp_path):
    write_run(tmp_path / "km", "km")
    write_run(tmp_path / "km1", "km", seed=1)
    write_run(tmp_path / "bf16", "km", precision="bf16", row={"git_commit": "beef"})
    names = "km (quick, eval-tasks 4, precision bf16)", "km (quick, eval-tasks 4)"
    ((c,), _) = comparisons_between(table_of(tmp_path).cells, *names)
    assert (c.difference, c.tasks_ci95, c.verdict) == (0, 0, "not separated")
    assert c.caveats == (
        f"protocols differ: {names[0]} against {names[1]}",
        f"seeds of {names[1]} without a partner: 1",
        "git_commit differs: beef against c0ffee",
    )


def test_one_refused_setting_does_not_hide_another(tmp_path):
    write_run(tmp_path / "km", "km")
    write_run(tmp_path / "anil", "anil")
    write_run(tmp_path / "km5", "km", shots=5)
    found, (reason,) = comparisons_between(table_of(tmp_path).cells, "km", "anil")
    assert len(found) == 1
    assert reason.startswith("Expected km and anil with one protocol in Omniglot 20-way 5-shot, got km (quick")


# Formats


@pytest.mark.parametrize("form", FORMATS)
def test_golden(tmp_path, form):
    """The files were checked by hand; METAKM_GOLDEN=1 writes them anew."""
    found = render_table(table_of(small_study(tmp_path)), form)
    path = GOLDEN / f"table.{FORMATS[form]}"
    if os.environ.get("METAKM_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text()


@pytest.mark.parametrize("form", FORMATS)
def test_golden_comparison(tmp_path, form):
    table = table_of(small_study(tmp_path))
    found = render_comparisons(*comparisons_between(table.cells, "km", "anil"), table, form)
    path = GOLDEN / f"compare.{FORMATS[form]}"
    if os.environ.get("METAKM_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text()


def test_csv_and_json_hold_the_same(tmp_path):
    table = table_of(small_study(tmp_path))
    lines = list(csv.DictReader(io.StringIO(render_table(table, "csv"))))
    for kind, records in json.loads(render_table(table, "json")).items():
        of_kind = [line for line in lines if line["kind"] == kind]
        assert len(of_kind) == len(records)
        for line, record in zip(of_kind, records, strict=True):
            assert {k: "" if v is None else str(v) for k, v in record.items()}.items() <= line.items()


def test_forest_plot_is_a_picture_in_each_format(tmp_path):
    table = table_of(small_study(tmp_path))
    assert forest_picture(table, "pdf").startswith(b"%PDF")
    write_run(tmp_path / "dollars", "a$\\frac$")
    svg = forest_picture(table_of(tmp_path), "svg").decode()
    assert svg.count("<!-- km (quick, eval-tasks 4) -->") == 2  # in Omniglot and in tiny-ImageNet
    assert "<!-- tiny-ImageNet 5-way 1-shot -->" in svg
    assert "<!-- a$\\frac$ (quick, eval-tasks 4) -->" in svg  # no formula


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
    assert main([str(study), "--format", "markdown", "--out", str(out), "--plot", str(plot)]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "study/foreign/result.csv: Expected the columns of a run's row, got 'method'" in printed.err
    assert out.read_text() == (GOLDEN / "table.md").read_text()
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main([str(study)]) == 0
    assert capsys.readouterr().out == (GOLDEN / "table.txt").read_text()
    assert main([str(study), "--compare", "km", "anil", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["comparison"][0]["difference_points"] == 12.890625
    assert main([str(study), "--strict"]) == 1


def test_strict_minds_unread_files_alone(tmp_path, capsys):
    write_run(tmp_path, row={"git_commit": "", "status": "failed"})
    assert main([str(tmp_path), "--strict"]) == 0
    assert "status failed" in capsys.readouterr().out


def test_baseline_is_what_differences_are_taken_to(tmp_path, capsys):
    write_run(tmp_path / "km", "km", [0.5, 0.75])
    write_run(tmp_path / "maml", "maml", [0.25, 0.75])
    assert main([str(tmp_path), "--baseline", "maml", "--format", "markdown"]) == 0
    printed = capsys.readouterr().out
    assert "| Minus maml, points |" in printed
    assert "| +12.50 ± 24.50 (tasks) |" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--plot", "x.doc"], "Expected --plot to end in .png, .svg or .pdf, got x.doc"),
        (["--baseline", "anli"], "Expected --baseline to be one of anil, km, maml, got 'anli'; did you mean 'anil'?"),
        (["--compare", "km", "anil"], "Expected a measured strategy or row to be one of"),
        (["--out", "/dev/null/x"], "Expected files that can be written, got"),
    ],
)
def test_mistakes_end_in_one_line_and_code_2(tmp_path, capsys, flags, message):
    write_run(tmp_path / "run")
    assert main([str(tmp_path), *flags]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {message}")
    assert printed.out == ""


def test_module_runs_on_the_committed_rows():
    command = [sys.executable, "-m", "metakm.table", "results/quick", "--compare", "km", "anil", "--strict"]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "km (quick)  anil (quick)  +1.33 +- 0.28 (tasks)" in done.stdout

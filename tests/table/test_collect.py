"""Reading runs back, and refusing what is damaged, foreign or at odds with itself."""

import csv
import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import write_run

from metakm import UserError
from metakm.run.folder import RunFolder
from metakm.run.loading import read_config
from metakm.run.row import COLUMNS, ResultRow
from metakm.table.collect import read_runs

OLDER = {"changes": None}  # as rows were before they recorded what their run changed


def the_run(folder):
    (run,) = read_runs(folder).runs
    return run


def the_reason(folder):
    collection = read_runs(folder)
    assert collection.runs == ()
    (problem,) = collection.problems
    return problem.reason


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_files_saved_by_excel_or_an_editor_with_a_byte_order_mark_are_read(tmp_path):
    write_run(tmp_path / "a")
    expected = the_run(tmp_path)
    for name in ("result.csv", "tasks.csv", "config.json"):
        path = tmp_path / "a" / name
        path.write_text(path.read_text(), encoding="utf-8-sig")
    found = the_run(tmp_path)
    assert (found.row, found.changes) == (expected.row, expected.changes)
    assert RunFolder(tmp_path / "a").read_row() == vars(expected.row)
    assert read_config(tmp_path / "a").algo == "km"


def test_a_run_is_read_as_it_was_written(tmp_path):
    write_run(tmp_path / "x" / "a", accuracies=(0.1, 0.2, 0.6), seed=3, row={"git_commit": ""})
    run = the_run(tmp_path)
    assert run.path == tmp_path / "x" / "a" / "result.csv"
    assert run.name == "x/a"
    assert run.row.seed == 3
    assert run.row.ms_per_iteration is None
    assert run.row.git_commit == ""
    assert run.row.first_order is False
    assert run.accuracies.tolist() == [0.1, 0.2, 0.6]


def test_row_survives_its_file(tmp_path):
    row = the_run(write_run(tmp_path)).row
    (cells,) = csv.DictReader(row.to_csv().splitlines())
    assert ResultRow.from_cells(cells) == row
    assert tuple(cells) == COLUMNS


def test_runs_come_sorted_by_name_and_other_files_do_not_matter(tmp_path):
    for name in ("c", "a", "b/d"):
        write_run(tmp_path / name)
    (tmp_path / "experiment.csv").write_text("what,ever\n")
    assert [run.name for run in read_runs(tmp_path).runs] == ["a", "b/d", "c"]


def test_what_was_changed_in_the_preset_is_known(tmp_path):
    four = ("eval_tasks", "4")  # the preset has 600
    assert the_run(write_run(tmp_path, accuracies=np.full(600, 0.5))).changes == ()
    run = the_run(write_run(tmp_path, precision="bf16", first_order=True, meta_lr=0.5, bn_mode="support"))
    changed = {"precision": "bf16", "first_order": "true", "meta_lr": "0.5", "bn_mode": "support"}
    assert run.changes == tuple(sorted([four, *changed.items()]))


def test_a_row_says_itself_what_its_run_changed(tmp_path):
    run = the_run(write_run(tmp_path, precision="bf16", inner_steps=2))
    assert json.loads(run.row.changes) == {"eval_tasks": 4, "inner_steps": 2, "precision": "bf16"}
    (tmp_path / "config.json").unlink()
    assert run.changes == (("eval_tasks", "4"), ("inner_steps", "2"), ("precision", "bf16"))
    assert the_run(tmp_path).changes == run.changes


def test_rows_from_before_the_column_of_changes_read_the_same(tmp_path):
    """Both as it was written then, and as a later command writes it again: with an empty cell."""
    changed = {"preset": "quick", "algo": "reptile", "meta_lr": 0.5, "bn_mode": "support"}
    expected = the_run(write_run(tmp_path, **changed)).changes
    write_run(tmp_path, **changed, row=OLDER)
    assert the_run(tmp_path).changes == expected
    path = tmp_path / "result.csv"
    header, line = path.read_text().splitlines()
    added = ",changes,init_weights,stopped,trained_on,tested_as,trained_split_hash"
    path.write_text(f"{header.removesuffix(added)}\n{line.removesuffix(',,,,,,')}\n")
    assert the_run(tmp_path).changes == expected
    assert RunFolder(tmp_path).read_row()["changes"] is None


def test_a_preset_that_changed_between_two_runs_is_told(tmp_path):
    """Neither run changed anything of its preset; what they are not is one protocol."""
    for seed, iterations in enumerate((500, 500, 800)):
        folder = write_run(tmp_path / str(seed), seed=seed, iterations=iterations, row={"changes": "{}"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **({"later": 1} if seed else {})}))
    changes = [run.changes for run in read_runs(tmp_path).runs]
    assert changes == [(("iterations", "500"),), (("iterations", "500"),), (("iterations", "800"),)]


def test_without_config_an_older_runs_protocol_is_told_from_row_and_name(tmp_path):
    write_run(tmp_path, precision="bf16", inner_steps=2, row=OLDER)
    (tmp_path / "config.json").unlink()
    assert the_run(tmp_path).changes == (("config.json", "missing (bf16)"), ("eval_tasks", "4"), ("inner_steps", "2"))


def test_config_of_another_version(tmp_path):
    write_run(tmp_path, row=OLDER)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["momentum"] = [0.9]  # a field of some later version
    del config["precision"], config["schedule"]  # one with a default, one without
    path.write_text(json.dumps(config))
    assert the_run(tmp_path).changes == (("eval_tasks", "4"), ("momentum", "[0.9]"), ("schedule", "unknown"))


def test_a_run_older_than_a_field_that_its_preset_sets_now_changed_it(tmp_path):
    write_run(tmp_path, preset="paper", row=OLDER)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["normal_head"]
    path.write_text(json.dumps(config))
    assert the_run(tmp_path).changes == (("eval_tasks", "4"), ("normal_head", "false"))


def test_a_run_without_tasks_is_read(tmp_path):
    write_run(tmp_path)
    (tmp_path / "tasks.csv").unlink()
    assert the_run(tmp_path).accuracies is None


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("result.csv", "accuracy,ci95", "accuracy,ci59", "Expected the columns of a run's row, got 'ci59'"),
        (
            "result.csv",
            ",n_tasks",
            "",
            f"Expected {len(COLUMNS) - 1} values in each line of result.csv, got {len(COLUMNS)} in line 2",
        ),
        ("result.csv", ",started_at", ",algo", "Expected different columns in result.csv, got one twice"),
        ("result.csv", ",0.6875,", ",1.65,", "Expected column accuracy to be a fraction, got 1.65"),
        ("result.csv", ",0.6875,", ",,", "Expected a run that is done to have accuracy, ci95 and 2 or more n_tasks"),
        ("result.csv", ",0.6875,", ",nan,", "Expected column accuracy to be .*, got 'nan'"),
        ("result.csv", ",False,", ",no,", "Expected column first_order to be .*bool.*, got 'no'"),
        ("result.csv", ",20,1,", ",20.5,1,", "Expected column ways to be .*int.*, got '20.5'"),
        ("result.csv", ",20,1,", ",20,-1,", "Expected column shots to be 0 or more, got -1"),
        ("result.csv", ",done,", ",fine,", "Expected column status to be one of done, failed, interrupted, running"),
        ("result.csv", ",quick,", ",quack,", "Expected column preset to be one of .* did you mean 'quick'"),
        ("result.csv", ",km,", ",k\x1b[2Jm,", "Expected column algo to be printable"),
        ("result.csv", ",20,1,", ",1,1,", "Expected ways 20 as in config.json, got 1 in the row"),
        ("result.csv", '"{""', '"[""', "Expected column changes to be a JSON object of printable texts"),
        ("result.csv", "eval_tasks", "eval\\n", "Expected column changes to be a JSON object of printable texts"),
        (
            "result.csv",
            "eval_tasks",
            "val_task",
            "Expected val_task none as in config.json, got 4 in the row's changes",
        ),
        ("result.csv", '"": 4', '"": 5', "Expected eval_tasks 4 as in config.json, got 5 in the row's changes"),
        ("config.json", "{", "[", "Expected the run.s settings in .*config.json"),
        ("config.json", '"meta_lr": 0.003', '"meta_lr": 0.004', "Expected meta_lr 0.004 as in config.json, got 0.003"),
        ("config.json", '"eval_tasks": 4', '"eval_tasks": 5', "Expected eval_tasks 5 as in config.json, got 4"),
        ("tasks.csv", "0.5", "0.6", "Expected tasks.csv to have the row's accuracy 0.6875, got 0.7125"),
        ("tasks.csv", "0.5\n1,0.75", "0.1\n1,1.15", "Expected tasks.csv to have accuracies from 0 to 1"),
        ("tasks.csv", "0.5\n1,0.75", "0.625\n1,0.625", "Expected tasks.csv to have the row's ci95"),
        ("tasks.csv", "0,0.5\n", "", "Expected tasks.csv to have episodes 0 to 3 in order"),
        ("tasks.csv", "0.5", "x", "Expected tasks.csv to have numbers"),
        ("tasks.csv", "accuracy", "acc", "Expected tasks.csv to have numbers in columns episode and accuracy"),
    ],
)
def test_what_is_damaged_or_at_odds_is_named(tmp_path, file, old, new, reason):
    edit(write_run(tmp_path) / file, old, new)
    assert re.search(reason, the_reason(tmp_path))


@pytest.mark.parametrize("content", [b"", b"\n", b"\x00\xff\xfe", b'a,"b\n', b"method,accuracy\nkm,97\n"])
def test_foreign_files_are_named(tmp_path, content):
    (tmp_path / "result.csv").write_bytes(content)
    assert the_reason(tmp_path).startswith("Expected ")


def test_two_rows_in_one_file_and_a_folder_by_the_name_are_named(tmp_path):
    path = write_run(tmp_path / "a") / "result.csv"
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    (tmp_path / "b" / "result.csv").mkdir(parents=True)
    assert [problem.name for problem in read_runs(tmp_path).problems] == ["a", "b"]
    assert "got 2" in read_runs(tmp_path).problems[0].reason


def test_a_config_that_is_no_object_is_named(tmp_path):
    (write_run(tmp_path) / "config.json").write_text("3")
    assert "Expected a JSON object in" in the_reason(tmp_path)


def test_a_missing_folder_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="Expected a folder of results"):
        read_runs(tmp_path / "none")


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_a_cut_or_overwritten_row_is_read_or_named(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    content = (write_run(folder) / "result.csv").read_bytes()
    start = data.draw(st.integers(0, len(content)))
    length = data.draw(st.integers(0, 40))
    (folder / "result.csv").write_bytes(content[:start] + data.draw(st.binary(max_size=8)) + content[start + length :])
    collection = read_runs(folder)
    assert len(collection.runs) + len(collection.problems) == 1
    shutil.rmtree(folder)


@given(st.dictionaries(st.sampled_from(COLUMNS), st.text(max_size=8)))
def test_any_text_is_a_row_or_an_error_for_the_user(cells):
    try:
        row = ResultRow.from_cells({**dict.fromkeys(COLUMNS, "1"), "status": "done", "first_order": "True", **cells})
    except UserError:
        return
    assert set(dataclasses.asdict(row)) == set(COLUMNS)

"""Cells: what is averaged, what never is, and what is said of them below the table."""

import numpy as np
import pytest
from runs import SIX_HUNDRED, table_of, write_run
from scipy import stats

from metakm.learning.statistics import interval_over_tasks
from metakm.table.published import published_results
from metakm.table.setting import TABLE3, Setting


def the_cell(folder):
    (cell,) = table_of(folder).cells
    return cell


def test_published_values_are_the_papers():
    values = {(p.method, p.setting): (p.accuracy, p.plus_minus) for p in published_results()}
    assert values["KM (the paper)", Setting("omniglot", 20, 1)] == (97.01, 0.01)
    assert values["MAML [8]", Setting("mini-imagenet", 5, 1)] == (48.70, 1.84)
    assert len(values) == 3 * 4 + 2 * 2  # the paper's own mini-ImageNet values are not legible
    assert {p.setting for p in published_results()} == set(TABLE3)
    assert all(p.source and p.meaning for p in published_results())


def test_one_seed_has_the_rows_own_interval(tmp_path):
    write_run(tmp_path, accuracies=SIX_HUNDRED)
    cell = the_cell(tmp_path)
    assert (cell.mean, cell.n_seeds, cell.n_tasks, cell.seeds_ci95) == (50.0, 1, 600, None)
    assert cell.tasks_ci95 == pytest.approx(100 * interval_over_tasks(SIX_HUNDRED))
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
    write_run(tmp_path / "a", preset="paper", accuracies=SIX_HUNDRED)
    write_run(tmp_path / "b", preset="paper", accuracies=SIX_HUNDRED, iterations=10)
    write_run(tmp_path / "c", accuracies=SIX_HUNDRED)
    found = {cell.protocol.label: cell.protocol.published for cell in table_of(tmp_path).cells}
    assert found == {"km (paper)": True, "km (paper, iterations 10)": False, "km (quick)": False}


@pytest.mark.parametrize(
    "column", ["git_commit", "threads", "device", "torch_version", "metakm_version", "init_weights", "stopped"]
)
def test_mixed_provenance_in_a_cell_is_listed(tmp_path, column):
    changes = {"patience": 5} if column == "stopped" else {}  # without, a callback has stopped it: see below
    write_run(tmp_path / "a", seed=0, **changes)
    write_run(tmp_path / "b", seed=1, row={column: 64 if column == "threads" else "other"}, **changes)
    (note,) = table_of(tmp_path).notes
    assert f"{column} differs (" in note
    assert f"{64 if column == 'threads' else 'other'}: b" in note


def test_runs_of_other_data_of_the_same_name_are_left_out(tmp_path):
    """Two folders of images are both called folder; as seeds of one cell, or as duplicates, they would be nonsense."""
    write_run(tmp_path / "birds", dataset="folder", seed=0)
    write_run(tmp_path / "birds 1", dataset="folder", seed=1)
    for seed, algo in ((1, "km"), (2, "km"), (3, "anil")):
        write_run(tmp_path / f"fish {seed}", algo, dataset="folder", seed=seed, row={"split_hash": "f15h"})
    table = table_of(tmp_path)
    assert [[run.name for run in cell.runs] for cell in table.cells] == [["birds", "birds 1"]]
    reasons = {item.run.name: item.reason for item in table.left_out}
    assert set(reasons) == {"fish 1", "fish 2", "fish 3"}
    assert all(reason.startswith("same dataset name as birds, but different data") for reason in reasons.values())


def test_where_tasks_cannot_be_averaged_the_interval_over_them_is_the_mean_of_the_rows_own(tmp_path):
    write_run(tmp_path / "a", seed=0)
    write_run(tmp_path / "b", seed=1, accuracies=(0.5, 0.5, 0.25, 0.5), row={"episodes_hash": "others"})
    write_run(tmp_path / "c", "anil", seed=0)
    write_run(tmp_path / "d", "anil", seed=1)
    (tmp_path / "d" / "tasks.csv").unlink()
    table = table_of(tmp_path)
    anil, km = table.cells
    own, other = (run.row.ci95 for run in km.runs)
    assert km.tasks_ci95 == pytest.approx(100 * (own + other) / 2)
    assert anil.tasks_ci95 == pytest.approx(100 * own)
    assert any("episodes_hash differs" in note for note in table.notes)


def test_adapted_parameters_that_differ_are_not_chosen_from(tmp_path):
    write_run(tmp_path / "a", seed=0)
    write_run(tmp_path / "b", seed=1, row={"adapted_parameters": 9})
    table = table_of(tmp_path)
    assert (table.cells[0].adapted_parameters, table.cells[0].ratio_to_maml) == (None, None)
    assert "adapted_parameters differs" in table.notes[0]


def test_rows_of_other_protocols_are_not_one_cell_where_a_config_is_missing(tmp_path):
    """As after a preset has changed: neither run has changed it."""
    write_run(tmp_path / "a", seed=0)
    write_run(tmp_path / "b", seed=1, row={"meta_lr": 0.5})
    write_run(tmp_path / "c", seed=2)
    for name in "bc":
        (tmp_path / name / "config.json").unlink()
    cells = {tuple(run.name for run in cell.runs): cell.protocol.label for cell in table_of(tmp_path).cells}
    assert cells == {
        ("a", "c"): "km (quick, eval-tasks 4, meta-lr 0.003)", ("b",): "km (quick, eval-tasks 4, meta-lr 0.5)",
    }  # fmt: skip


def test_runs_that_a_callback_stopped_are_not_one_cell_with_those_that_had_all_iterations(tmp_path):
    write_run(tmp_path / "a", seed=0)
    write_run(tmp_path / "b", seed=1, row={"stopped": "after 30 iterations: by a callback"})
    write_run(tmp_path / "c", seed=2, row={"stopped": "after 40 iterations: patience 5"}, patience=5)
    labels = {cell.runs[0].name: cell.protocol.label for cell in table_of(tmp_path).cells}
    assert labels == {
        "a": "km (quick, eval-tasks 4)",
        "b": "km (quick, eval-tasks 4, stopped-early)",
        "c": "km (quick, eval-tasks 4, patience 5)",
    }


def test_unfinished_and_double_runs_are_left_out_by_name(tmp_path):
    write_run(tmp_path / "first", accuracies=[0.5, 0.5])
    write_run(tmp_path / "again", accuracies=[1.0, 1.0], row={"started_at": "2027-01-01T00:00:00+00:00"})
    for status in ("running", "interrupted", "failed"):
        write_run(tmp_path / status, seed=3, row={"status": status, "accuracy": None, "ci95": None, "n_tasks": 0})
    table = table_of(tmp_path)
    assert [(cell.mean, cell.n_seeds) for cell in table.cells] == [(50.0, 1)]
    reasons = {item.run.name: item.reason for item in table.left_out}
    assert reasons.pop("again").startswith("duplicate of first: same protocol and seed")
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

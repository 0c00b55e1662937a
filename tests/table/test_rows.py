import io
import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from runs import write_run

from metakm import UserError
from metakm.learning.statistics import interval_over_tasks
from metakm.run.curve import CurvePoint, curve_csv, curve_png
from metakm.run.folder import RunFolder
from metakm.run.row import COLUMNS, CsvRow

PROMISED = (
    "run_id, status, algo, dataset, ways, shots, queries, seed, preset, backbone, bn_mode, first_order, inner_lr, "
    "inner_steps, test_inner_steps, meta_batch, meta_lr, iterations, adapted_parameters, total_parameters, "
    "val_accuracy, accuracy, ci95, n_tasks, train_seconds, ms_per_iteration, peak_memory_mb, device, threads, "
    "torch_version, metakm_version, git_commit, split_hash, episodes_hash, started_at, test_queries, select, "
    "changes, init_weights, stopped, trained_on, tested_as, trained_split_hash"
)


def test_columns_are_exactly_those_that_other_work_relies_on():
    assert ", ".join(COLUMNS) == PROMISED


def test_interval_over_tasks_by_hand():
    # mean 0.5, sample variance (2 * 0.3^2 + 2 * 0.1^2) / 3
    values = np.array([0.2, 0.4, 0.6, 0.8])
    assert interval_over_tasks(values) == pytest.approx(1.96 * np.sqrt(0.2 / 3) / 2)
    assert interval_over_tasks(np.full(5, 0.7)) == pytest.approx(0)


def test_curve_keeps_missing_figures_missing():
    points = [CurvePoint(0, None, None, 0.1, 0.5), CurvePoint(5, 1.5, 0.25, 0.2, 2.0)]
    table = pd.read_csv(io.StringIO(curve_csv(points)))
    assert list(table.columns) == ["iteration", "train_loss", "train_accuracy", "val_accuracy", "seconds"]
    assert np.isnan(table.train_loss[0])
    assert table.val_accuracy.tolist() == [0.1, 0.2]
    assert curve_png(points, "title").startswith(b"\x89PNG")
    assert curve_png(points[:1], "title").startswith(b"\x89PNG")


def test_folder_clears_its_own_files_only(tmp_path):
    folder = RunFolder(tmp_path / "a" / "b")
    with folder.locked():
        assert not folder.used
    folder.release()
    assert not folder.used
    folder.write_config({"a": 1})
    folder.write_tasks(np.array([0.5, 1.0]))
    folder.write_weights(b"weights")
    folder.result.write_text("x")
    (folder.path / "notes.txt").write_text("mine")
    assert json.loads((folder.path / "config.json").read_text()) == {"a": 1}
    assert (folder.path / "tasks.csv").read_text() == "episode,accuracy\n0,0.5\n1,1.0\n"
    assert folder.used
    assert folder.weights.read_bytes() == b"weights"
    assert folder.read_row() is None
    folder.clear()
    assert [p.name for p in folder.path.iterdir()] == ["notes.txt"]


def test_a_column_added_later_has_its_default_in_older_rows():
    @dataclass(frozen=True, kw_only=True)
    class Grown(CsvRow):
        seed: int
        start: str = "plain"

    assert Grown.from_cells({"seed": "3"}) == Grown(seed=3, start="plain")
    assert Grown.from_cells({"seed": "3", "start": "exact"}).start == "exact"
    with pytest.raises(UserError, match="Expected a column 'seed'"):
        Grown.from_cells({"start": "exact"})


def test_a_row_that_says_running_is_marked_interrupted_unless_its_process_lives(tmp_path):
    folder = RunFolder(write_run(tmp_path / "run", row={"status": "running", "accuracy": None, "ci95": None}))
    before = folder.read_row()
    other = RunFolder(folder.path)
    with other.locked():
        assert folder.mark_interrupted({}) is None
        assert folder.read_row() == before
        other.lock.release()
    marked = folder.mark_interrupted({"train_seconds": 2.5})
    assert folder.read_row() == marked == {**before, "status": "interrupted", "train_seconds": 2.5}
    assert not folder.lock.path.exists()
    for path in (folder.path, write_run(tmp_path / "done"), tmp_path / "not there"):
        assert RunFolder(path).mark_interrupted({"train_seconds": 9.0}) is None
    assert RunFolder(tmp_path / "done").read_row()["status"] == "done"
    assert not (tmp_path / "not there").exists()

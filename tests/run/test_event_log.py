"""`--json`, `--quiet` and `--log-dir` of a small run of the embedded dataset."""

import json
import sys

import numpy as np
import pandas as pd
import pytest

from metakm.learning.outer_loop import OuterLoop
from metakm.presets import preset_config
from metakm.run.__main__ import main
from metakm.run.event_log import EventLog

pytestmark = pytest.mark.float32

SMALL = (
    "--ways 3 --queries 2 --backbone conv4-8-stride --meta-batch 2 --val-tasks 4 --eval-tasks 6 --device cpu "
    "--iterations 6 --val-every 3"
)
FOLDER = "glyphs-3w1s/km/seed0"


@pytest.fixture(autouse=True)
def environment(cache, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(cache))


class DiedError(Exception):
    """What nothing catches."""


def run(out, *extra):
    return main([*SMALL.split(), "--out", str(out), *extra])


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def scalars(folder):
    """[(iteration, value), ...] by tag, as TensorBoard reads them."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run_folder,) = folder.iterdir()
    events = EventAccumulator(str(run_folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.slow
def test_json_lines_are_the_curve_the_progress_and_the_row(tmp_path, capsys):
    assert run(tmp_path, "--json", "--quiet") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    told = [json.loads(line) for line in captured.out.splitlines()]
    curve = pd.read_csv(tmp_path / FOLDER / "curve.csv")
    points = [each for each in told if each["event"] == "validation"]
    assert [p["iteration"] for p in points] == curve.iteration.tolist() == [0, 3, 6]
    assert [p["val_accuracy"] for p in points] == pytest.approx(curve.val_accuracy.tolist(), rel=1e-14)
    assert points[0]["train_loss"] is None
    ends = [(p["phase"], p["done"], p["total"]) for p in told if p["event"] == "progress"]
    assert ends == [("meta-train", 6, 6), ("meta-test", 6, 6)]
    row = pd.read_csv(tmp_path / FOLDER / "result.csv").iloc[0]
    assert told[-1]["event"] == "result"
    assert (told[-1]["status"], told[-1]["run_id"]) == ("done", row.run_id)
    assert told[-1]["accuracy"] == pytest.approx(row.accuracy, rel=1e-14)  # pandas 2 reads the last digit otherwise
    assert list(told[-1])[1:] == list(row.index)
    assert run(tmp_path, "--json", "--resume") == 0
    (again,) = lines(capsys)
    assert again == told[-1]


def test_quiet_leaves_the_result(tmp_path, capsys):
    assert run(tmp_path, "--quiet") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith("km glyphs 3-way 1-shot")
    assert captured.out.count("\n") == 1
    assert run(tmp_path, "--quiet") == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_failed_run_and_a_dry_run_end_in_one_object(tmp_path, capsys):
    assert run(tmp_path / "dry", "--json", "--dry-run", "--log-dir", str(tmp_path / "dry" / "log")) == 0
    (config,) = lines(capsys)
    assert (config["event"], config["iterations"], config["log_dir"]) == ("config", 6, str(tmp_path / "dry" / "log"))
    assert not (tmp_path / "dry").exists()
    assert run(tmp_path, "--json", "--meta-lr", "1e30", "--schedule", "constant") == 1
    last = lines(capsys)[-1]
    assert (last["event"], last["status"], last["accuracy"]) == ("result", "failed", None)


def test_tensorboard_has_each_iteration_once_after_a_run_that_died_and_went_on(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    log = ("--log-dir", str(tmp_path / "log"))
    step, losses = OuterLoop.step, {}

    def watched(self):
        if self.iteration == 5 and "died" not in losses:
            losses["died"] = True
            raise DiedError
        result = step(self)
        losses[self.iteration] = result.loss
        return result

    monkeypatch.setattr(OuterLoop, "step", watched)
    with pytest.raises(DiedError):
        run(tmp_path, *log)
    assert [i for i, _ in scalars(tmp_path / "log")["meta-train/loss"]] == [1, 2, 3, 4, 5]
    assert run(tmp_path, *log, "--resume") == 0
    told = scalars(tmp_path / "log")
    assert [i for i, _ in told["meta-train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [v for _, v in told["meta-train/loss"]] == [np.float32(losses[i]) for i in range(1, 7)]
    assert [i for i, _ in told["meta-train/accuracy"]] == [1, 2, 3, 4, 5, 6]
    assert all(value > 0 for _, value in told["meta-train/ms_per_iteration"])
    curve = pd.read_csv(tmp_path / FOLDER / "curve.csv")
    assert told["meta-val/accuracy"] == [(p.iteration, np.float32(p.val_accuracy)) for p in curve.itertuples()]
    accuracy = pd.read_csv(tmp_path / FOLDER / "result.csv").accuracy[0]
    assert told["meta-test/accuracy"] == [(6, np.float32(accuracy))]


@pytest.mark.parametrize("resumed", [True, False])
def test_tensorboard_has_the_test_at_the_iteration_reached(tmp_path, resumed):
    log = EventLog(preset_config(log_dir=tmp_path), "stopped early")
    with log.writing(3 if resumed else 0):
        if not resumed:
            log.log_iteration(2, 0.5, 0.5, 0.1)
        log.log_result({"accuracy": 0.25, "iterations": 6})
    assert scalars(tmp_path)["meta-test/accuracy"] == [(2, 0.25)]


def test_a_run_refused_for_its_log_folder_writes_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "out", "--log-dir", str(tmp_path / "file" / "log")) == 2
    assert f"got {tmp_path / 'file'}" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert run(tmp_path / "out", "--log-dir", str(tmp_path / "log")) == 2
    assert "pip install 'metakm[tensorboard]'" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["file"]

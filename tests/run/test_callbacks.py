"""What callbacks of a run get, when it stops early, and that a resumed run does as an uninterrupted one."""

import functools
import json
import math

import pandas as pd
import pytest
import torch
from runs import numbers, small_config

import metakm
from metakm.run.__main__ import main
from metakm.run.callbacks import CallbackList
from metakm.run.checkpoint import load_checkpoint
from metakm.run.curve import CurvePoint

pytestmark = pytest.mark.float32
six_iterations = functools.partial(small_config, iterations=6)


@pytest.fixture(autouse=True)
def environment(cache, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(cache))


class Recorder(metakm.Callback):
    """Everything that it is called with."""

    def __init__(self):
        self.iterations, self.validations, self.ends = [], [], []

    def on_iteration(self, event):
        self.iterations.append(event)

    def on_validation(self, event):
        self.validations.append(event)

    def on_end(self, event):
        self.ends.append(event)


class StopAt(metakm.Callback):
    def __init__(self, number):
        self.number = number

    def on_iteration(self, event):
        return "a long\nreason" if event.number == self.number else None


class Counter(metakm.Callback):
    """Stops after a number of iterations that it counts itself, across resumes."""

    def __init__(self, enough):
        self.enough, self.seen = enough, 0

    def on_iteration(self, _event):
        self.seen += 1
        return "enough" if self.seen == self.enough else None

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


class Interrupt(metakm.Callback):
    """Ctrl-C after an iteration."""

    def __init__(self, after):
        self.after = after

    def on_iteration(self, event):
        if event.number == self.after:
            raise KeyboardInterrupt


def row(run):
    return pd.read_csv(run.folder / "result.csv", keep_default_na=False).iloc[0]


def test_each_event_has_what_happened(tmp_path):
    seen = Recorder()
    run = metakm.train(six_iterations(tmp_path), callbacks=[seen])
    curve = pd.read_csv(run.folder / "curve.csv")
    assert [event.number for event in seen.iterations] == [1, 2, 3, 4, 5, 6]
    assert [event.iteration for event in seen.validations] == curve.iteration.tolist() == [0, 2, 4, 6]
    assert [event.accuracy for event in seen.validations] == curve.val_accuracy.tolist()
    assert [len(event.curve) for event in seen.validations] == [1, 2, 3, 4]
    losses = [event.loss for event in seen.iterations]
    assert (losses[0] + losses[1]) / 2 == pytest.approx(curve.train_loss[1])
    assert all(event.seconds > 0 for event in seen.iterations)
    assert isinstance(seen.iterations[0].learner, metakm.Learner)
    (end,) = seen.ends
    assert (end.iterations, end.stopped, end.accuracy, end.interval) == (6, "", run.accuracy, run.interval)
    assert end.folder == run.folder
    assert row(run).stopped == ""


def test_callbacks_do_not_change_the_run(tmp_path):
    plain = metakm.train(six_iterations(tmp_path / "a"))
    called = metakm.train(six_iterations(tmp_path / "b"), callbacks=[metakm.Callback(), Recorder()])
    assert numbers(called.folder) == numbers(plain.folder)


def test_a_run_that_is_stopped_says_so_and_is_tested_as_any(tmp_path):
    seen = Recorder()
    run = metakm.train(six_iterations(tmp_path), callbacks=[StopAt(3), seen])
    assert row(run).stopped == seen.ends[0].stopped == "after 3 iterations: a long reason"
    assert row(run).status == "done"
    assert pd.read_csv(run.folder / "curve.csv").iteration.tolist() == [0, 2, 3]
    assert metakm.evaluate(run).accuracy == run.accuracy
    assert metakm.load_run(run.folder).accuracy == run.accuracy
    again = metakm.train(six_iterations(tmp_path, resume=True), callbacks=[seen])
    assert (again.accuracy, len(seen.ends)) == (run.accuracy, 1)
    shorter = metakm.train(six_iterations(tmp_path / "short", iterations=3, schedule="constant"))
    same = metakm.train(six_iterations(tmp_path / "same", schedule="constant"), callbacks=[StopAt(3)])
    assert same.accuracy == shorter.accuracy
    last = metakm.train(six_iterations(tmp_path / "last"), callbacks=[StopAt(6)])
    assert row(last).stopped == "", "it had all its iterations"


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_resumed_run_with_callbacks_equals_an_unbroken_one(tmp_path, after):
    whole = metakm.train(six_iterations(tmp_path / "whole"), callbacks=[Counter(5)])
    assert row(whole).stopped == "after 5 iterations: enough"
    with pytest.raises(KeyboardInterrupt):
        metakm.train(six_iterations(tmp_path / "part"), callbacks=[Counter(5), Interrupt(after)])
    part = metakm.train(six_iterations(tmp_path / "part", resume=True), callbacks=[Counter(5)])
    assert numbers(part.folder) == numbers(whole.folder)
    assert row(part).stopped == row(whole).stopped


def test_a_run_that_was_stopped_and_then_killed_goes_on_to_its_test(tmp_path, monkeypatch):
    whole = metakm.train(six_iterations(tmp_path / "whole"), callbacks=[StopAt(4)])
    with monkeypatch.context() as patch:
        patch.setattr("metakm.run.runner.Run.test_accuracies", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            metakm.train(six_iterations(tmp_path / "part"), callbacks=[StopAt(4)])
    config = six_iterations(tmp_path / "part")
    state = load_checkpoint(config.folder / "checkpoint.pt", config)
    assert state["stopped"] == "after 4 iterations: a long reason"
    part = metakm.train(six_iterations(tmp_path / "part", resume=True))
    assert numbers(part.folder) == numbers(whole.folder)
    assert row(part).stopped == row(whole).stopped


def curve(*accuracies):
    return [CurvePoint(i, None, None, accuracy, 0.0) for i, accuracy in enumerate(accuracies)]


@pytest.mark.parametrize(
    ("accuracies", "stops"),
    [((0.5,), False), ((0.5, 0.4), False), ((0.5, 0.4, 0.5), True), ((0.5, 0.4, 0.6), False), ((0.4, 0.5, 0.1), False),
     ((0.5, 0.4, 0.6, 0.5, 0.55), True), ((math.nan, 0.4, 0.5, 0.6), False), ((math.nan, 0.4, 0.3, 0.3), True),
     ((math.nan, math.nan, math.nan), True)],
)  # fmt: skip
def test_patience_counts_validations_without_a_new_best(accuracies, stops):
    called = CallbackList([metakm.EarlyStopping(patience=2)], torch.nn.Identity())
    called.on_validation(curve(*accuracies))
    assert bool(called.stopped) == stops


def test_patience_is_a_flag_of_the_command_too(tmp_path, monkeypatch, capsys):
    accuracies = iter([0.5, 0.6, 0.3, 0.2, 0.9])
    monkeypatch.setattr("metakm.run.runner.Run.validation_accuracy", lambda _: next(accuracies))
    words = "--ways 3 --queries 2 --backbone conv4-4-stride --meta-batch 2 --iterations 8 --val-every 2 --val-tasks 2"
    assert (
        main([*words.split(), *["--eval-tasks", "2", "--patience", "2", "--json", "--quiet", "--out"], str(tmp_path)])
        == 0
    )
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["stopped"] == "after 6 iterations: no better meta-validation accuracy in 2 validations"
    assert json.loads(result["changes"])["patience"] == 2
    assert result["val_accuracy"] == 0.6


def test_only_a_run_with_patience_names_it(tmp_path):
    plain, patient = six_iterations(tmp_path), six_iterations(tmp_path, patience=3)
    assert "patience" not in plain.to_json()
    assert "patience" not in plain.identity()
    assert type(patient).from_json(patient.to_json()) == patient
    assert patient.run_id != plain.run_id


def test_what_is_no_callback_and_no_patience_is_refused(tmp_path):
    with pytest.raises(metakm.UserError, match=r"derive from metakm\.Callback, got function"):
        metakm.train(six_iterations(tmp_path), callbacks=[test_patience_counts_validations_without_a_new_best])
    with pytest.raises(metakm.UserError, match="Expected patience to be at least 1 validation, got 0"):
        metakm.EarlyStopping(patience=0)
    with pytest.raises(metakm.UserError, match="--patience"):
        six_iterations(tmp_path, patience=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["on_iteration", "on_validation"])
@pytest.mark.parametrize("returned", [True, False, 0.5, {"loss": 1}])
def test_what_is_returned_by_chance_is_no_reason_to_stop(method, returned):
    callback = type("Chatty", (metakm.Callback,), {method: lambda *_: returned})()
    called = CallbackList([callback], torch.nn.Identity())
    with pytest.raises(metakm.UserError, match=rf"Chatty\.{method} to return None or, .* in words, got {returned!r}"):
        called.on_iteration(1, 0.0, 0.0, 0.0) if method == "on_iteration" else called.on_validation(curve(0.5))


def test_one_is_singular():
    called = CallbackList([StopAt(1)], torch.nn.Identity())
    called.on_iteration(1, 0.0, 0.0, 0.0)
    assert called.stopped == "after 1 iteration: a long reason"
    called = CallbackList([metakm.EarlyStopping(1)], torch.nn.Identity())
    called.on_validation(curve(0.5, 0.4))
    assert called.stopped == "after 1 iteration: no better meta-validation accuracy in 1 validation"


def test_each_callback_gets_the_state_of_its_class():
    saved = CallbackList([Counter(9), Recorder(), Counter(9)], torch.nn.Identity())
    saved.on_iteration(1, 0.0, 0.0, 0.0)
    saved.callbacks[2].seen = 7
    others = [Counter(9), StopAt(1), Counter(9), Counter(9)]
    CallbackList(others, torch.nn.Identity()).load_state(saved.state())
    assert [each.seen for each in others if isinstance(each, Counter)] == [1, 7, 0]
    CallbackList(others, torch.nn.Identity()).load_state({})  # a checkpoint from before there were callbacks

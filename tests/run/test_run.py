"""The command from its flags to its files, on small runs of the embedded dataset."""

import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from runs import numbers, state
from small import WITHOUT_STEPS

import metakm
from metakm.cli.progress import Progress
from metakm.io.lock import Lock
from metakm.learning.memory import TooLittleMemoryError
from metakm.learning.outer_loop import OuterLoop
from metakm.run.__main__ import main
from metakm.run.build import make_sampler
from metakm.run.peak_memory import peak_memory_mb
from metakm.run.row import COLUMNS
from metakm.strategies import registry
from metakm.strategies.km import KM

pytestmark = pytest.mark.float32

SMALL = "--ways 3 --queries 2 --backbone conv4-8-stride --meta-batch 2 --val-tasks 4 --eval-tasks 6 --device cpu"


@pytest.fixture(autouse=True)
def environment(cache, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def run(out, *extra, iterations=6, every=3):
    flags = f"{SMALL} --iterations {iterations} --val-every {every} --out".split()
    return main([*flags, str(out), *extra])


def folder(out, algo="km"):
    return Path(out) / "glyphs-3w1s" / algo / "seed0"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, cache):
    """A finished run in a folder; do not change it."""
    out = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAKM_CACHE", str(cache))
        assert run(out) == 0
    return out


def test_a_run_writes_its_folder(tmp_path, capsys):
    assert run(tmp_path) == 0
    path = folder(tmp_path)
    names = {"config.json", "curve.csv", "curve.png", "tasks.csv", "checkpoint.pt", "result.csv", "weights.safetensors"}
    assert {p.name for p in path.iterdir()} == names
    row = pd.read_csv(path / "result.csv")
    assert tuple(row.columns) == COLUMNS
    row = row.iloc[0]
    assert (row.status, row.algo, row.dataset, row.ways, row.shots) == ("done", "km", "glyphs", 3, 1)
    assert (row.n_tasks, row.iterations, row.device, row.preset) == (6, 6, "cpu", "quick")
    assert row.ms_per_iteration > 0
    assert row.train_seconds * 1000 > 6 * row.ms_per_iteration
    tasks = pd.read_csv(path / "tasks.csv")
    assert tasks.episode.tolist() == list(range(6))
    assert row.accuracy == pytest.approx(tasks.accuracy.mean())
    assert row.ci95 == pytest.approx(1.96 * tasks.accuracy.std() / np.sqrt(6))
    curve = pd.read_csv(path / "curve.csv")
    assert curve.iteration.tolist() == [0, 3, 6]
    assert row.val_accuracy == curve.val_accuracy.max()
    config = json.loads((path / "config.json").read_text())
    assert metakm.config.RunConfig.from_json(config).iterations == 6
    output = capsys.readouterr()
    assert f"meta-test accuracy {100 * row.accuracy:.2f} +- {100 * row.ci95:.2f} %" in output.out
    assert f"adapts {row.adapted_parameters} of {row.total_parameters:,} parameters" in output.err
    assert "meta-train 6/6" in output.err


@pytest.mark.parametrize("algo", metakm.available_strategies())
def test_every_strategy_runs_to_its_row(tmp_path, algo, capsys):
    assert run(tmp_path, "--algo", algo, iterations=2, every=1) == 0
    row = pd.read_csv(folder(tmp_path, algo) / "result.csv").iloc[0]
    assert (row.status, row.algo, row.n_tasks) == ("done", algo, 6)
    assert row.accuracy > 1 / 3
    no_effect = "the inner learning rate and steps have no effect" in capsys.readouterr().err
    assert (row.adapted_parameters == 0) == no_effect == (algo in WITHOUT_STEPS)


def test_a_run_that_classifies_is_built_again_from_its_files(tmp_path):
    assert run(tmp_path, "--algo", "baseline", iterations=2, every=1) == 0
    path, classes = folder(tmp_path, "baseline"), metakm.load_dataset("glyphs").n_episode_classes
    row = pd.read_csv(path / "result.csv").iloc[0]
    for kept, dropped in (("weights.safetensors", "checkpoint.pt"), ("checkpoint.pt", "weights.safetensors")):
        copied = tmp_path / kept
        shutil.copytree(path, copied)
        (copied / dropped).unlink()
        loaded = metakm.load_run(copied)
        assert loaded.strategy.classifier.out_features == loaded.learner.train_classes == classes
        assert metakm.evaluate(copied).accuracy == row.accuracy
    saved = torch.load(path / "checkpoint.pt", weights_only=True)
    assert saved["train_classes"] == classes
    assert run(tmp_path, "--algo", "anil", iterations=0) == 0
    assert torch.load(folder(tmp_path, "anil") / "checkpoint.pt", weights_only=True)["train_classes"] is None


def test_the_checkpoint_tested_is_the_best_on_meta_validation(tmp_path):
    run(tmp_path, "--meta-lr", "0.5", iterations=8, every=1)
    path = folder(tmp_path)
    curve, row = pd.read_csv(path / "curve.csv"), pd.read_csv(path / "result.csv").iloc[0]
    best = torch.load(path / "checkpoint.pt", weights_only=True)["best"]
    assert row.val_accuracy == best["val_accuracy"] == curve.val_accuracy.max()
    assert curve.val_accuracy.iloc[-1] < curve.val_accuracy.max(), "choose a run whose last state is not the best"


def test_the_last_model_is_tested_where_that_is_asked_for(tmp_path):
    run(tmp_path, "--meta-lr", "0.5", "--select", "last", iterations=8, every=1)
    path = folder(tmp_path)
    curve, row = pd.read_csv(path / "curve.csv"), pd.read_csv(path / "result.csv").iloc[0]
    saved = torch.load(path / "checkpoint.pt", weights_only=True)
    assert row.select == "last"
    assert row.val_accuracy == curve.val_accuracy.iloc[-1] < curve.val_accuracy.max(), "choose a run that tells"
    tested, last = saved["best"]["model"], saved["loop"]["model"]
    assert all(torch.equal(tested[name], last[name]) for name in last)


def test_meta_validation_and_meta_test_may_have_other_queries_than_meta_training(tmp_path):
    assert run(tmp_path / "as-training") == run(tmp_path / "own", "--test-queries", "5") == 0
    usual, own = (pd.read_csv(folder(tmp_path / name) / "result.csv").iloc[0] for name in ("as-training", "own"))
    assert [(row.queries, row.test_queries) for row in (usual, own)] == [(2, 0), (2, 5)]
    assert own.episodes_hash != usual.episodes_hash
    tasks = pd.read_csv(folder(tmp_path / "own") / "tasks.csv")
    right = tasks.accuracy * 3 * 5
    assert np.allclose(right, right.round())
    config = metakm.config.RunConfig.from_json(json.loads((folder(tmp_path / "own") / "config.json").read_text()))
    assert [make_sampler(config, split).queries for split in ("train", "val", "test")] == [2, 5, 5]
    assert metakm.evaluate(folder(tmp_path / "own")).accuracy == own.accuracy


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(tmp_path):
    for name in ("a", "b"):
        assert run(tmp_path / name) == 0
        torch.rand(3)  # the global generator plays no part
    assert run(tmp_path / "c", "--seed", "1") == 0
    assert numbers(folder(tmp_path / "a")) == numbers(folder(tmp_path / "b"))
    other = folder(tmp_path / "c").parent / "seed1"
    assert state(other) != state(folder(tmp_path / "a"))
    hashes = {pd.read_csv(p / "result.csv").episodes_hash[0] for p in (folder(tmp_path / "a"), other)}
    assert len(hashes) == 1, "meta-test episodes are the same for every seed"


@pytest.mark.parametrize("extra", [[], ["--learn-inner-lr", "--bn-mode", "running", "--first-order", "--ema", "0.9"]])
def test_a_run_that_died_resumes_to_the_numbers_of_an_unbroken_one(tmp_path, monkeypatch, extra):
    assert run(tmp_path / "whole", *extra) == 0
    step = OuterLoop.step

    def die(self):
        if self.iteration == 5:
            raise MemoryError
        return step(self)

    monkeypatch.setattr("metakm.run.history.SAVE_SECONDS", 0.0)
    monkeypatch.setattr(OuterLoop, "step", die)
    with pytest.raises(MemoryError):
        run(tmp_path / "broken", *extra)
    monkeypatch.setattr(OuterLoop, "step", step)
    assert pd.read_csv(folder(tmp_path / "broken") / "result.csv").status[0] == "interrupted"
    assert run(tmp_path / "broken", "--resume", *extra) == 0
    assert numbers(folder(tmp_path / "broken")) == numbers(folder(tmp_path / "whole"))


def test_a_validation_that_found_no_memory_is_made_up_for_on_resuming(tmp_path, monkeypatch):
    """The checkpoint left behind is not one that skips it."""
    assert run(tmp_path / "whole", every=2) == 0
    found, calls = OuterLoop.accuracies, []

    def scarce(self, *arguments, **more):
        calls.append(self.iteration)
        if calls == [0, 2, 4]:
            raise TooLittleMemoryError("Expected memory, got none")
        return found(self, *arguments, **more)

    monkeypatch.setattr(OuterLoop, "accuracies", scarce)
    assert run(tmp_path / "broken", every=2) == 1
    assert run(tmp_path / "broken", "--resume", every=2) == 0
    assert numbers(folder(tmp_path / "broken")) == numbers(folder(tmp_path / "whole"))


def test_a_checkpoint_from_before_a_field_had_a_name_is_resumed(tmp_path, unbroken):
    """Its run did as the field's default does."""
    assert run(tmp_path / "old") == 0
    path = folder(tmp_path / "old") / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    identity = json.loads(saved["config"])
    del identity["first_head_lr"]
    torch.save({**saved, "config": json.dumps(identity)}, path)
    (folder(tmp_path / "old") / "result.csv").unlink()
    assert run(tmp_path / "old", "--resume", "--learn-inner-lr") == 2
    assert run(tmp_path / "old", "--resume") == 0
    assert numbers(folder(tmp_path / "old")) == numbers(folder(unbroken))


COMMAND = [sys.executable, "-m", "metakm.run", *SMALL.split(), "--iterations", "100", "--val-every", "10", "--out"]


@pytest.fixture(scope="session")
def whole(tmp_path_factory, cache):
    """What an unbroken process of `COMMAND` computes."""
    out = tmp_path_factory.mktemp("whole")
    environment = {**os.environ, "METAKM_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    subprocess.run([*COMMAND, str(out)], env=environment, capture_output=True, check=True)
    return numbers(folder(out))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_process_stopped_by_a_signal_resumes_to_the_same_numbers(tmp_path, number, whole):
    with subprocess.Popen([*COMMAND, str(tmp_path)], stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("iteration 20"):
                process.send_signal(number)
                break
        error = process.stderr.read()
    row = pd.read_csv(folder(tmp_path) / "result.csv").iloc[0]
    assert np.isnan(row.accuracy)
    if number == signal.SIGKILL:
        assert (process.returncode, row.status) == (-signal.SIGKILL, "running")
    else:
        assert (process.returncode, row.status) == (130, "interrupted")
        assert "--resume" in error
    assert "Traceback" not in error
    assert subprocess.run([*COMMAND, str(tmp_path), "--resume"], capture_output=True).returncode == 0
    assert numbers(folder(tmp_path)) == whole


def test_ctrl_c_during_meta_test_keeps_the_training(tmp_path, unbroken, monkeypatch, capsys):
    advance = Progress.advance

    def interrupt(self, steps=1, loss=None, accuracy=None):
        if self.unit == "task":
            os.kill(os.getpid(), signal.SIGINT)
        advance(self, steps, loss, accuracy)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "advance", interrupt)
        assert run(tmp_path / "cut") == 130
    assert "Interrupted after 6 iterations" in capsys.readouterr().err
    assert not (folder(tmp_path / "cut") / "tasks.csv").exists()
    assert run(tmp_path / "cut", "--resume", "--task-chunk", "1") == 0
    assert numbers(folder(tmp_path / "cut")) == numbers(folder(unbroken))


def test_a_finished_result_without_its_checkpoint_is_done_and_not_resumed_over(tmp_path, unbroken, capsys):
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    (folder(tmp_path) / "checkpoint.pt").unlink()
    before = (folder(tmp_path) / "result.csv").read_bytes()
    assert run(tmp_path, "--resume") == 0
    assert "already done" in capsys.readouterr().out
    assert run(tmp_path, "--resume", "--inner-lr", "0.123") == 2
    assert "which has weights, tasks or a row of an earlier run but no checkpoint.pt" in capsys.readouterr().err
    assert (folder(tmp_path) / "result.csv").read_bytes() == before


@pytest.mark.parametrize("left", ["weights.safetensors", "tasks.csv", "result.csv"])
def test_what_a_run_came_to_is_never_written_over_unasked(tmp_path, unbroken, capsys, left):
    """Weights kept without their row, and a row that a spreadsheet has changed, are an earlier run as well."""
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    path = folder(tmp_path)
    if left == "result.csv":
        (path / left).write_text((path / left).read_text().replace("False", "FALSE"))
    for file in path.iterdir():
        if file.name not in (left, "config.json"):
            file.unlink()
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    for flags in ((), ("--resume",)):
        assert run(tmp_path, *flags) == 2
        assert re.search(r"earlier run but no checkpoint\.pt; add --overwrite to", capsys.readouterr().err)
        assert {p.name: p.read_bytes() for p in path.iterdir()} == before
    assert run(tmp_path, "--overwrite") == 0


@pytest.mark.parametrize("bn_mode", ["transductive", "support", "running", "frozen"])
def test_bfloat16_runs_in_every_batch_norm_mode(tmp_path, monkeypatch, bn_mode):
    seen, step = set(), OuterLoop.step

    def watched(loop):
        seen.add(loop.evaluator.dtype)
        return step(loop)

    monkeypatch.setattr(OuterLoop, "step", watched)
    assert run(tmp_path, "--precision", "bf16", "--bn-mode", bn_mode, iterations=2) == 0
    row = pd.read_csv(folder(tmp_path) / "result.csv").iloc[0]
    assert "bf16" in row.run_id
    assert row.bn_mode == bn_mode
    assert seen == {torch.bfloat16}


def test_a_strategy_that_changed_since_the_checkpoint_is_named(tmp_path, unbroken, monkeypatch, capsys):
    class Changed(KM):
        def __init__(self, backbone, ways, **options):
            super().__init__(backbone, ways, **{**options, "implicit": True})

    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    (folder(tmp_path) / "result.csv").unlink()
    monkeypatch.setitem(registry.strategies.entries, "km", Changed)
    assert run(tmp_path, "--resume") == 2
    assert "; restore the strategy if it was changed, or start again with --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("writable", [True, False])
def test_a_run_that_ends_at_once_is_interrupted_as_far_as_that_can_be_written(tmp_path, monkeypatch, error, writable):
    def fail(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    def ended(_):
        if not writable:
            monkeypatch.setattr("metakm.io.files.os.fsync", fail)
        raise error

    monkeypatch.setattr(OuterLoop, "step", ended)
    assert run(tmp_path) == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert pd.read_csv(folder(tmp_path) / "result.csv").status[0] == ("interrupted" if writable else "running")
    assert not (folder(tmp_path) / "run.lock").exists()


def test_a_run_that_is_refused_leaves_the_row_of_a_killed_one(tmp_path, unbroken):
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    row = folder(tmp_path) / "result.csv"
    row.write_text(row.read_text().replace(",done,", ",running,"))
    assert run(tmp_path) == 2
    assert pd.read_csv(row).status[0] == "running"


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell")
def test_the_peak_memory_is_that_of_the_run_not_of_what_came_before(tmp_path):
    earlier = torch.ones(75_000_000)
    del earlier
    before = peak_memory_mb(torch.device("cpu"))
    assert run(tmp_path, iterations=1, every=1) == 0
    assert pd.read_csv(folder(tmp_path) / "result.csv").peak_memory_mb[0] < before - 150


def test_the_estimate_is_of_the_iterations_that_are_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(OuterLoop, "trial_seconds", lambda _: 10.0)
    assert run(tmp_path, "--dry-run") == 0
    assert "about 10000 ms per iteration, 01:00 of meta-training, 0." in capsys.readouterr().err
    step = OuterLoop.step

    def ended(loop):
        if loop.iteration == 4:
            raise KeyboardInterrupt
        return step(loop)

    monkeypatch.setattr(OuterLoop, "step", ended)
    assert run(tmp_path) == 130
    before = {p.name: p.read_bytes() for p in folder(tmp_path).iterdir()}
    capsys.readouterr()
    assert run(tmp_path, "--dry-run", "--resume") == 0
    said = capsys.readouterr().err
    assert "about 10000 ms per iteration, 00:30 of meta-training" in said
    assert "resumes at iteration 3" in said
    assert {p.name: p.read_bytes() for p in folder(tmp_path).iterdir()} == before


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(tmp_path, capsys):
    assert run(tmp_path / "out", "--dry-run") == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["iterations"] == 6
    assert "ms per iteration" in output.err
    assert "GB" in output.err
    assert not (tmp_path / "out").exists()


def test_resuming_a_finished_run_reports_it_again_and_changes_nothing(tmp_path, unbroken, capsys):
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    before = {p.name: p.read_bytes() for p in folder(tmp_path).iterdir()}
    capsys.readouterr()
    assert run(tmp_path, "--resume") == 0
    assert "already done" in capsys.readouterr().out
    assert before == {p.name: p.read_bytes() for p in folder(tmp_path).iterdir()}


def test_an_earlier_run_is_replaced_only_when_told(tmp_path, unbroken, capsys):
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    before = (folder(tmp_path) / "result.csv").read_bytes()
    assert run(tmp_path) == 2
    assert "--resume" in capsys.readouterr().err
    assert (folder(tmp_path) / "result.csv").read_bytes() == before
    assert run(tmp_path, "--overwrite") == 0
    assert (folder(tmp_path) / "result.csv").read_bytes() != before


def test_resuming_with_another_config_names_what_differs(tmp_path, unbroken, capsys):
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    assert run(tmp_path, "--resume", "--inner-lr", "0.123") == 2
    error = capsys.readouterr().err
    assert "inner_lr=" in error
    assert "0.123" in error


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path, unbroken, capsys):
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    before = {p.name: p.read_bytes() for p in folder(tmp_path).iterdir()}
    lock = Lock(folder(tmp_path) / "run.lock")
    lock.acquire()
    for flag in ("--resume", "--overwrite"):
        assert run(tmp_path, flag) == 2
        assert f"used by process {os.getpid()} on" in capsys.readouterr().err
    assert run(tmp_path, "--dry-run") == 0, "a dry run takes no lock"
    lock.release()
    assert before == {p.name: p.read_bytes() for p in folder(tmp_path).iterdir()}


def test_a_damaged_checkpoint_is_named(tmp_path, unbroken, capsys):
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    (folder(tmp_path) / "result.csv").unlink()
    for content in (b"", b"nonsense", (folder(tmp_path) / "checkpoint.pt").read_bytes()[:500]):
        (folder(tmp_path) / "checkpoint.pt").write_bytes(content)
        assert run(tmp_path, "--resume") == 2
        assert "checkpoint.pt" in capsys.readouterr().err


def test_a_full_disk_stops_the_run_with_a_message_and_leaves_it_to_resume(tmp_path, unbroken, monkeypatch, capsys):
    write, calls = metakm.io.files.os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle)

    with monkeypatch.context() as patch:
        patch.setattr("metakm.io.files.os.fsync", full)
        assert run(tmp_path / "full") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert run(tmp_path / "full", "--resume") == 0
    assert numbers(folder(tmp_path / "full")) == numbers(folder(unbroken))


def test_divergence_is_a_failed_run_that_the_command_printed_reproduces(tmp_path, capsys):
    diverging = ["--meta-lr", "1e30", "--schedule", "constant"]
    assert run(tmp_path, *diverging, every=100) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "not finite at iteration 1, because of meta-training episodes 2, 3; try a smaller --inner-lr" in said
    row = pd.read_csv(folder(tmp_path) / "result.csv").iloc[0]
    assert (row.status, np.isnan(row.accuracy)) == ("failed", True)
    words = shlex.split(said.partition("To reproduce it: ")[2])
    assert words[:3] == ["python", "-m", "metakm.run"]
    steps, step = [], OuterLoop.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OuterLoop, "step", lambda self: steps.append(self.iteration) or step(self))
        assert main(words[3:]) == 1
    assert steps == [1], "the failing iteration at once, from the checkpoint"
    assert capsys.readouterr().err.splitlines()[-1] == said
    assert run(tmp_path, *diverging, "--overwrite", every=100) == 1
    assert capsys.readouterr().err.splitlines()[-1] == said


def test_too_little_memory_for_one_task_is_a_failed_run_with_advice(tmp_path, monkeypatch, capsys, caplog):
    def fail(*_, **__):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("metakm.learning.learner.meta_loss", fail)
        assert run(tmp_path) == 1
    assert caplog.messages == ["out of memory with 2 tasks at a time; continuing with 1"]
    assert "lower --queries" in capsys.readouterr().err.splitlines()[-1]
    assert pd.read_csv(folder(tmp_path) / "result.csv").status[0] == "failed"
    assert run(tmp_path, "--resume") == 0


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--algo", "mmal"], "did you mean 'maml'"),
        (["--dataset", "omniglott"], "did you mean 'omniglot'"),
        (["--backbone", "conv5"], "Expected backbone"),
        (["--ways", "1"], "Expected --ways to be at least 2, got 1"),
        (["--ways", "2000"], "2000"),
        (["--queries", "30"], "30"),
        (["--algo", "anil", "--implicit"], "--implicit has no effect with 'anil'"),
        (["--algo", "km", "--km.depth", "0"], "Expected --km.depth to be at least 1, got 0"),
        (["--algo", "km-proto", "--km-proto.depth", "0"], "Expected --km-proto.depth to be at least 1, got 0"),
        (
            ["--algo", "km", "--train-ways", "3"],
            "Expected a range of ways from 2 or more such as 5-20, got '3'",
        ),
        (["--algo", "anil", "--km.depth", "1"], "'anil' has no options of its own, got --km.depth; leave it out"),
        (["--algo", "protonet", "--first-order"], "--first-order has no effect with 'protonet'"),
        (["--device", "cuda:7"], "--device"),
        (["--device", "abacus"], "--device"),
        (["--plugin", "missing.py"], "missing.py"),
        (["--inner-lr", "-1"], "Expected --inner-lr to be a positive number"),
        (["--resume", "--overwrite"], "drop one"),
        (["--augment"], "Expected photographs with --augment, got glyphs train"),
    ],
)
def test_a_users_mistake_ends_with_one_message_and_code_2_and_writes_nothing(tmp_path, capsys, extra, message):
    assert run(tmp_path / "out", *extra) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_missing_data_says_what_where_and_how(tmp_path, capsys):
    assert run(tmp_path / "out", "--dataset", "mini-imagenet", "--data-root", str(tmp_path)) == 2
    error = capsys.readouterr().err
    assert str(tmp_path) in error
    assert "--dataset glyphs" in error


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file") == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_zero_iterations_evaluate_the_untrained_start(tmp_path):
    assert run(tmp_path, iterations=0) == 0
    row = pd.read_csv(folder(tmp_path) / "result.csv").iloc[0]
    assert np.isnan(row.ms_per_iteration)
    assert 0 < row.accuracy < 1


@pytest.mark.slow
def test_km_learns_real_omniglot(tmp_path):
    """20-way 1-shot on a short budget: far above chance (5 %) and above its own untrained start."""
    root = os.environ.get("METAKM_DATA")
    if not root or not (Path(root) / "omniglot" / "images_background.zip").exists():
        pytest.skip("omniglot/images_background.zip is not under METAKM_DATA")
    flags = ["--dataset", "omniglot", "--meta-batch", "4", "--inner-lr", "1", "--val-tasks", "8", "--eval-tasks", "48"]
    accuracy = {}
    for iterations in (0, 60):
        out = tmp_path / str(iterations)
        assert main([*flags, "--iterations", str(iterations), "--out", str(out)]) == 0
        accuracy[iterations] = pd.read_csv(out / "omniglot-20w1s/km/seed0/result.csv").accuracy[0]
    assert accuracy[60] > 6 * 0.05
    assert accuracy[60] > 2 * accuracy[0]

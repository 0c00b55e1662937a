"""`metakm evaluate`: a finished run tested again, from its folder alone."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import metakm
from metakm.cli.progress import Progress
from metakm.config import RunConfig
from metakm.data import Episodes
from metakm.registry import isolated
from metakm.run import build
from metakm.run.__main__ import main
from metakm.run.evaluate import RunEvaluation
from metakm.run.evaluate import main as evaluate_main
from metakm.run.folder import RunFolder
from metakm.run.weights import read_run_weights, weights_file

pytestmark = pytest.mark.float32

SMALL = "--ways 3 --queries 3 --backbone conv4-4-stride --meta-batch 2 --val-tasks 4 --eval-tasks 6 --device cpu"
SMALL += " --iterations 4 --val-every 2 --meta-lr 0.05"
PLUGIN = """import metakm
from metakm.strategies.anil import ANIL
metakm.register_strategy("mine")(type("Mine", (ANIL,), {}))
"""


@pytest.fixture(autouse=True)
def environment(cache, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(cache))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cache):
    """A folder with runs of KM and of KM with learned rates; do not change it."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAKM_CACHE", str(cache))
        for name, flags in (("km", []), ("rates", ["--learn-inner-lr", "--inner-lr-per-step", "--bn-mode", "running"])):
            assert main([*SMALL.split(), *flags, "--out", str(out / name)]) == 0
    return out


def folder(out, algo="km"):
    return out / "glyphs-3w1s" / algo / "seed0"


@pytest.fixture
def run(runs, tmp_path):
    """A copy of the KM run without its checkpoint, as a committed one."""
    return committed(folder(runs / "km"), tmp_path / "run")


def committed(path, copy):
    shutil.copytree(path, copy, ignore=shutil.ignore_patterns("checkpoint.pt"))
    return copy


def evaluate(run, *flags):
    return evaluate_main([str(run), "--device", "cpu", *flags])


def result(capsys):
    """The last JSON line on standard output."""
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def contents(folder):
    return {p.relative_to(folder): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kept", ["weights.safetensors", "checkpoint.pt", "both"])
@pytest.mark.parametrize("name", ["km", "rates"])
def test_the_accuracy_of_the_row_is_repeated_to_the_last_digit_and_nothing_is_written(
    runs, tmp_path, capsys, monkeypatch, name, kept
):
    shutil.copytree(folder(runs / name), tmp_path / "run")
    for file in ("weights.safetensors", "checkpoint.pt"):
        if kept not in (file, "both"):
            (tmp_path / "run" / file).unlink()
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path), tmp_path.stat().st_mtime_ns, (tmp_path / "run").stat().st_mtime_ns
    row = pd.Series(RunFolder(tmp_path / "run").read_row())
    assert evaluate("run") == 0
    said = capsys.readouterr().out
    assert said.endswith("equal to its row: run/result.csv\n")
    assert f"meta-test accuracy {100 * row.accuracy:.2f} +- {100 * row.ci95:.2f} % (95 % interval over 6" in said
    assert evaluate("run", "--json", "--quiet") == 0
    found = result(capsys)
    assert found["event"] == "result"
    assert found["accuracy"] == found["row_accuracy"] == row.accuracy
    for column in ("run_id", "algo", "ci95", "n_tasks", "split_hash", "episodes_hash", "adapted_parameters"):
        assert found[column] == row[column], column
    after = contents(tmp_path), tmp_path.stat().st_mtime_ns, (tmp_path / "run").stat().st_mtime_ns
    assert after == before


def test_the_learned_rates_and_the_running_statistics_are_in_the_weights(runs, tmp_path):
    path = folder(runs / "rates")
    loaded = metakm.load_run(committed(path, tmp_path / "run"))
    best = torch.load(path / "checkpoint.pt", weights_only=True)["best"]["model"]
    assert len(loaded.inner_lr) == len(list(loaded.strategy.adapted.parameters())) > 10
    assert all(torch.equal(rate, best[f"rates.{i}"]) for i, rate in enumerate(loaded.inner_lr))
    assert len({rate for rates in loaded.inner_lr for rate in rates.tolist()}) > 1, "they were learned"
    assert same(loaded.learner.state_dict(), best)
    assert any("running" in name for name in best)


def test_the_weights_are_the_best_model_not_the_last(tmp_path):
    flags = [*SMALL.replace("0.05", "0.5").split(), "--iterations", "8", "--val-every", "1", "--out", str(tmp_path)]
    assert main(flags) == 0
    state = torch.load(folder(tmp_path) / "checkpoint.pt", weights_only=True)
    _, _, model = read_run_weights(folder(tmp_path) / "weights.safetensors", config_of(folder(tmp_path)))
    assert same(model, state["best"]["model"])
    assert not same(model, state["loop"]["model"])


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def config_of(folder):
    return RunConfig.from_json(json.loads((folder / "config.json").read_text()))


def test_a_committed_run_classifies(run):
    loaded = metakm.load_run(run)
    images = torch.rand(3, *loaded.image_shape)
    inner = {"inner_lr": loaded.inner_lr, "inner_steps": loaded.test_inner_steps}
    assert metakm.adapt(loaded.strategy, images, ["a", "b", "c"], **inner)(images).shape == (3, 3)


def test_fewer_tasks_are_the_first_ones(run, capsys):
    tasks = pd.read_csv(run / "tasks.csv").accuracy
    assert evaluate(run, "--eval-tasks", "4", "--task-chunk", "3", "--json") == 0
    found = result(capsys)
    assert found["accuracy"] == pytest.approx(tasks[:4].mean(), abs=1e-15)
    assert (found["n_tasks"], found["row_n_tasks"], found["row_accuracy"]) == (4, 6, pytest.approx(tasks.mean()))
    assert found["run_id"] == pd.read_csv(run / "result.csv").run_id[0], "of the run, not of one with 4 tasks"
    assert evaluate(run, "--eval-tasks", "4") == 0
    beside = f"over 4 tasks), +0.00 +- 0.00 points relative to {100 * tasks[:4].mean():.2f} % on the same 4 tasks in"
    assert beside in capsys.readouterr().out


@pytest.mark.parametrize("count", [4, 9])
def test_the_difference_to_the_row_is_that_of_the_same_tasks(run, capsys, count):
    both = min(count, 6)
    recorded = pd.read_csv(run / "tasks.csv").accuracy[:both]
    flags = ["--eval-tasks", str(count), "--test-inner-steps", "0"]
    tested = metakm.evaluate(run, tasks=count, inner_steps=0, device="cpu").accuracies[:both]
    apart = tested - recorded
    width = 1.96 * apart.std() / np.sqrt(both)
    assert width > 0
    assert evaluate(run, *flags, "--json") == 0
    found = result(capsys)
    assert (found["paired_tasks"], found["paired_row_accuracy"]) == (both, pytest.approx(recorded.mean()))
    assert (found["paired_difference"], found["paired_ci95"]) == pytest.approx((apart.mean(), width))
    assert evaluate(run, *flags) == 0
    beside = (
        f"{100 * apart.mean():+.2f} +- {100 * width:.2f} points relative to {100 * recorded.mean():.2f} % on the same "
        f"{both} tasks in its row (its row: test_inner_steps=5 (now 0))"
    )
    assert beside in capsys.readouterr().out


def test_other_inner_steps_give_another_accuracy(run, capsys):
    assert evaluate(run, "--test-inner-steps", "0", "--json") == 0
    found = result(capsys)
    assert found["test_inner_steps"] == 0
    assert found["accuracy"] != found["row_accuracy"]


def test_the_head_alone_may_adapt(run, capsys):
    found = metakm.evaluate(run, adapt="head", inner_steps=20, device="cpu").accuracy
    assert found != metakm.evaluate(run, inner_steps=20, device="cpu").accuracy
    flags = ["--adapt", "head", "--test-inner-steps", "20", "--device", "cpu"]
    assert evaluate_main([str(run), *flags, "--json", "--quiet"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["accuracy"], result["adapt"]) == (found, "head")
    assert evaluate_main([str(run), *flags]) == 0
    assert "head alone: " in capsys.readouterr().out
    with pytest.raises(metakm.UserError, match="adapt"):
        metakm.evaluate(run, adapt="heads", device="cpu")


def test_on_meta_validation_the_accuracy_of_the_row_is_repeated_too(run, capsys):
    row = pd.read_csv(run / "result.csv").iloc[0]
    assert evaluate(run, "--split", "val") == 0
    said = rf"meta-validation accuracy {100 * row.val_accuracy:.2f} \+- .* over 4 tasks\), equal to its row"
    assert re.search(said, capsys.readouterr().out)
    assert evaluate(run, "--split", "val", "--json") == 0
    found = result(capsys)
    assert (found["split"], found["n_tasks"], found["row_n_tasks"], found["row_ci95"]) == ("val", 4, 4, None)
    assert found["accuracy"] == found["row_accuracy"] == row.val_accuracy
    assert found["episodes_hash"] != row.episodes_hash


def test_more_tasks_of_meta_validation_after_other_steps_are_set_beside_the_row(run, capsys):
    row = pd.read_csv(run / "result.csv").iloc[0]
    assert evaluate(run, "--split", "val", "--eval-tasks", "6", "--test-inner-steps", "0", "--json") == 0
    found = result(capsys)
    assert (found["n_tasks"], found["row_n_tasks"], found["test_inner_steps"]) == (6, 4, 0)
    assert found["row_accuracy"] == row.val_accuracy
    assert evaluate(run, "--split", "val", "--test-inner-steps", "0") == 0
    beside = rf"points relative to {100 * row.val_accuracy:.2f} % over 4 tasks in its row \(its row: test_inner_steps=5"
    assert re.search(beside, capsys.readouterr().out)


def test_a_row_without_an_accuracy_on_meta_validation_is_none_to_compare_with(run, capsys):
    pd.read_csv(run / "result.csv", dtype=str).assign(val_accuracy="").to_csv(run / "result.csv", index=False)
    assert evaluate(run, "--split", "val") == 0
    assert capsys.readouterr().out.endswith(f"with no row of such a test to compare with: {run}\n")


def test_without_a_row_there_is_nothing_to_compare_with(run, capsys):
    (run / "result.csv").unlink()
    assert evaluate(run) == 0
    assert capsys.readouterr().out.endswith(f"with no row of such a test to compare with: {run}\n")
    assert evaluate(run, "--json") == 0
    assert result(capsys)["row_accuracy"] is None


def test_what_may_have_made_the_accuracy_another_is_told(run, capsys):
    row = pd.read_csv(run / "result.csv", dtype=str)
    threads = int(row.threads[0])
    row.assign(split_hash="0" * 16, accuracy="0.25", threads=str(threads + 7)).to_csv(run / "result.csv", index=False)
    assert evaluate(run) == 0
    changes = rf"split_hash=0{{16}} \(now \w{{16}}\), threads={threads + 7} \(now {threads}\)\): "
    assert re.search(rf"relative to 25.00 \+- .* over 6 tasks in its row \(its row: {changes}", capsys.readouterr().out)


def test_a_plugin_is_run_when_it_is_named_and_not_otherwise(tmp_path, capsys):
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN)
    with isolated():
        assert main([*SMALL.split(), "--algo", "mine", "--plugin", str(plugin), "--out", str(tmp_path / "out")]) == 0
    run = folder(tmp_path / "out", "mine")
    capsys.readouterr()
    assert evaluate(run) == 2
    error = capsys.readouterr().err
    assert "Expected --plugin for the strategy 'mine', got none that has it" in error
    assert error.endswith(f"the run was started with --plugin {plugin}\n")
    assert evaluate(run, "--plugin", str(plugin)) == 0
    assert "equal to its row" in capsys.readouterr().out


DATASET = """
import metakm, numpy as np

@metakm.register_dataset("dots", title="Dots", family="characters", ways=3)
def dots(split, roots):
    images = np.random.default_rng(len(split) + ord(split[1])).integers(0, 256, (24, 1, 28, 28), dtype=np.uint8)
    return metakm.FewShotDataset.from_arrays(images, [f"{split}{i // 6}" for i in range(24)], name="dots", split=split)
"""
BACKBONE = """
import metakm

@metakm.register_backbone("slim-<filters>")
def slim(image_shape, bn_mode, filters):
    return metakm.Conv4(image_shape[0], filters, image_size=image_shape[1], bn_mode=bn_mode)
"""


@pytest.mark.parametrize(
    ("text", "flags", "said"),
    [
        (DATASET, ("--dataset", "dots"), "Expected --plugin for the dataset 'dots', got none that has it"),
        (BACKBONE, ("--backbone", "slim-4"), "Expected --plugin for the backbone 'slim-4', got none that has it"),
    ],
)
def test_a_run_says_that_its_data_or_backbone_need_a_plugin(tmp_path, capsys, text, flags, said):
    plugin = tmp_path / "mine.py"
    plugin.write_text(text)
    with isolated():
        words = [*SMALL.split(), "--algo", "anil", *flags, "--plugin", str(plugin), "--out", str(tmp_path / "out")]
        assert main(words) == 0
    [run] = (path.parent for path in (tmp_path / "out").rglob("config.json"))
    capsys.readouterr()
    assert evaluate(run) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.endswith(f"the run was started with --plugin {plugin}\n")
    assert evaluate(run, "--plugin", str(plugin)) == 0
    assert "equal to its row" in capsys.readouterr().out


def test_several_datasets_are_for_training_alone(run, capsys):
    assert evaluate(run, "--dataset", "flowers", "glyphs") == 2
    said = "Expected one --dataset to test on, got flowers glyphs; test on one after the other"
    assert said in capsys.readouterr().err


def test_the_runs_own_data_folder_is_used_while_it_is_there(run, tmp_path, capsys):
    settings = json.loads((run / "config.json").read_text())
    queries = str(settings["test_queries"] or settings["queries"])
    for root in (tmp_path, tmp_path / "gone"):
        (run / "config.json").write_text(json.dumps({**settings, "data_root": str(root)}))
        named = RunEvaluation(metakm.load_run(run), "test", {"dataset": "glyphs"})
        assert named.config.data_root == (root if root.exists() else None)
        for flags in ((), ("--dataset", "glyphs"), ("--test-queries", queries)):
            assert evaluate(run, *flags) == 0
            assert "equal to its row" in capsys.readouterr().out


def test_too_little_memory_is_code_1(run, monkeypatch, capsys):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("metakm.learning.evaluation.evaluate_episodes", fail)
    assert evaluate(run) == 1
    assert capsys.readouterr().err.startswith("error: Out of memory with a single task at a time")


def test_ctrl_c_is_code_130_and_one_line(run, monkeypatch, capsys):
    def interrupt(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "advance", interrupt)
    assert evaluate(run) == 130
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.endswith("Stopped. Nothing was written.\n")


def test_a_real_process_stopped_by_a_signal_exits_with_130(run):
    """Its first JSON line, which it is made to print at once, says that the meta-test is under way."""
    script = (
        "import sys, metakm.cli.progress as progress; from metakm.run.evaluate import main; "
        "progress.LINE_SECONDS = 0; sys.exit(main())"
    )
    flags = [str(run), "--eval-tasks", "100000", "--task-chunk", "1", "--device", "cpu", "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script, *flags], **pipes) as process:
        assert '"meta-test"' in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, error = process.communicate()
    assert process.returncode == 130
    assert error.endswith("Stopped. Nothing was written.\n")
    assert "Traceback" not in error


def test_overwriting_a_run_removes_its_weights_first(runs, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(runs / "km", out)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("metakm.run.runner.Run._train", stop)
    assert main([*SMALL.split(), "--out", str(out), "--overwrite"]) == 130
    assert not (folder(out) / "weights.safetensors").exists()


def test_a_strategy_that_safetensors_cannot_hold_is_refused_before_the_training(tmp_path, capsys):
    text = (
        "import torch, metakm\nfrom metakm.strategies.anil import ANIL\n\n@metakm.register_strategy('sparse')\n"
        "class Sparse(ANIL):\n    def __init__(self, backbone, ways):\n        super().__init__(backbone, ways)\n"
        "        self.register_buffer('table', torch.eye(2).to_sparse())\n"
    )
    (tmp_path / "sparse.py").write_text(text)
    flags = ["--algo", "sparse", "--plugin", str(tmp_path / "sparse.py"), "--out", str(tmp_path / "out")]
    assert main([*SMALL.split(), *flags]) == 2
    assert "Expected tensors that a safetensors file can hold" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_fields_of_another_config_are_named(run):
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**settings, "seed": 5, "inner_lr": 0.25}))
    with pytest.raises(metakm.UserError, match=r"inner_lr=0.5 \(now 0.25\), seed=0 \(now 5\)"):
        metakm.load_run(run)


def test_what_says_how_a_run_is_executed_may_differ(run):
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**settings, "out": "elsewhere", "device": "cpu", "quiet": True}))
    assert metakm.load_run(run).config.quiet


def test_weights_from_before_a_field_was_added_are_read(run):
    """A field that is missing has its default, as in config.json."""
    config = config_of(run)
    shape, _, model = read_run_weights(run / "weights.safetensors", config)
    identity = {k: v for k, v in config.identity().items() if k not in ("precision", "image_size")}

    class Older:
        def identity(self):
            return identity

    (run / "weights.safetensors").write_bytes(weights_file(Older(), shape, model))
    assert metakm.load_run(run).config == config


def forge(run, spoil=lambda _: None, image_shape=None):
    """Rewrite the weights, with a right digest but other contents."""
    config = config_of(run)
    shape, _, model = read_run_weights(run / "weights.safetensors", config)
    spoil(model)
    (run / "weights.safetensors").write_bytes(weights_file(config, image_shape or shape, model))


def put(name, change):
    """Replace a tensor of the strategy by a function of it."""
    return lambda model: model.update({name: change(model[name])})


HEAD = "strategy.network.head.bias"
FORGED = {
    "double precision": (
        put(HEAD, torch.Tensor.double),
        "bias of torch.float64, where the strategy has torch.float32",
    ),
    "integers": (put(HEAD, torch.Tensor.long), "head.bias of torch.int64, where"),
    "complex numbers": (put(HEAD, torch.Tensor.cfloat), "head.bias of torch.complex64, where"),
    "another shape": (put(HEAD, lambda bias: bias[:2]), "size mismatch for strategy.network.head.bias"),
    "no axes": (put(HEAD, lambda bias: bias[0]), "size mismatch for strategy.network.head.bias"),
    "one more": (lambda model: model.update(more=torch.zeros(1)), r"Unexpected key\(s\) .*more"),
    "one less": (lambda model: model.pop(HEAD), r"Missing key\(s\) .*head.bias"),
    "rates of a fixed rate": (
        lambda model: model.update({"rates.0": torch.zeros(())}),
        "1 learned inner rates, where 0 belong",
    ),
}
SHAPES = {
    "no size": ([0, 28, 28], "image_shape"),
    "a negative size": ([1, 28, -28], "image_shape"),
    "two axes": ([28, 28], "header of a trained run in .*unpack"),
    "a broken number": ([1, 28, 28.0], "image_shape"),
    "text": ("abc", "image_shape"),
    "other channels": ([3, 28, 28], "size mismatch for strategy.network"),
    "no end": ([10**15, 28, 28], "Expected the parameters"),
}


@pytest.mark.parametrize("case", FORGED)
def test_forged_weights_are_refused_and_what_is_wrong_is_named(run, case):
    spoil, said = FORGED[case]
    forge(run, spoil)
    with pytest.raises(metakm.UserError, match=said):
        metakm.load_run(run)


@pytest.mark.parametrize("case", SHAPES)
def test_a_forged_image_shape_is_refused(run, case):
    shape, said = SHAPES[case]
    forge(run, image_shape=shape)
    with pytest.raises(metakm.UserError, match=said):
        metakm.load_run(run)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda model: model.pop("rates.3"), r"\d+ learned inner rates, where \d+ belong"),
        (lambda model: model.update({"rates.99": torch.zeros(())}), r"\d+ learned inner rates, where \d+ belong"),
        (put("rates.3", lambda rates: rates[:2].contiguous()), r"size mismatch for rates.3: .*\[2\].*\[5\]"),
        (put("rates.3", torch.Tensor.long), "rates.3 of torch.int64"),
    ],
)
def test_forged_rates_are_refused(runs, tmp_path, spoil, said):
    run = committed(folder(runs / "rates"), tmp_path / "run")
    forge(run, spoil)
    with pytest.raises(metakm.UserError, match=said):
        metakm.load_run(run)


def test_a_flipped_byte_anywhere_is_refused(run):
    path = run / "weights.safetensors"
    whole = path.read_bytes()
    for position in np.linspace(0, len(whole) - 1, 40).astype(int):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(metakm.UserError, match=r"weights\.safetensors"):
            metakm.load_run(run)


def test_episodes_are_drawn_once_each(run, monkeypatch):
    """Nothing but the meta-test tasks is evaluated: no training, no validation."""
    sizes, to = [], Episodes.to
    monkeypatch.setattr(Episodes, "to", lambda self, *a: sizes.append(self.index) or to(self, *a))
    assert evaluate(run, "--task-chunk", "2") == 0
    assert sizes == [range(2), range(2, 4), range(4, 6)]


def test_images_of_another_shape_than_trained_on_are_refused(run, monkeypatch, capsys):
    load_run = metakm.load_run
    monkeypatch.setattr(
        "metakm.run.evaluate.load_run", lambda path: dataclasses.replace(load_run(path), image_shape=(3, 84, 84))
    )
    assert evaluate(run) == 2
    assert "Expected images of [3, 84, 84], which the run was trained on, got [1, 28, 28]" in capsys.readouterr().err


def test_the_training_data_are_not_read_to_test_on_the_same_data(run, monkeypatch):
    read, load = [], build.load_dataset
    monkeypatch.setattr(build, "load_dataset", lambda name, **how: (read.append(how["split"]), load(name, **how))[1])
    metakm.evaluate(run, tasks=2, device="cpu")
    assert read == ["test"]

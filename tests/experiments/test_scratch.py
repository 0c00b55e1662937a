import dataclasses
import json
import shutil
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from metakm.experiments import chosen_rates, scratch
from metakm.experiments.chosen_rates import RateAndStart
from metakm.experiments.lines import lines_of, read_experiments
from metakm.experiments.right import read_right
from metakm.experiments.row import ExperimentRow
from metakm.experiments.training import Training
from metakm.experiments.training_memory import STEPS, TrainingMemory
from metakm.learning.divergence import DivergedError

pytestmark = pytest.mark.float32


def test_trainable_parameters_are_the_papers():
    counts = {}
    for method in scratch.TABLE1:
        subject = scratch.method_setup(method, seed=0)
        trained = sum(p.numel() for p in subject.model.parameters() if p.requires_grad)
        counts[method] = (trained, sum(p.numel() for p in subject.model.parameters()))
    assert counts["full"] == (464_154, 464_154)
    assert counts["bl"] == (2_922, 464_154)  # 2.9 K of 470 K
    assert counts["km"] == (7_944, 469_176)  # 7.9 K of 470 K
    assert counts["sn"] == (8_005, 8_005)  # 8.0 K
    assert counts["tbn"] == (8_288, 1_730_714)  # 8.3 K of 1.7 M
    assert counts["ld"] == (78_330, 78_330)  # 78.3 K, moved along 8.0 K directions
    assert counts["ld-constant"] == counts["ld"]
    assert scratch.method_setup("ld", seed=0).map_gradient.directions == 8000


def test_the_convolutions_of_bl_and_km_are_the_same_random_ones():
    bl, km = (scratch.method_setup(method, seed=3).model.state_dict() for method in ("bl", "km"))
    originals = {k.replace("parametrizations.", "").replace(".original", ""): v for k, v in km.items()}
    for name, weight in bl.items():
        torch.testing.assert_close(originals[name], weight, rtol=0, atol=0)


def test_norm_scales_of_tbn_start_uniform():
    scales = torch.cat([p for n, p in scratch.method_setup("tbn", 0).model.named_parameters() if _is_scale(n)])
    assert scales.min() >= 0
    assert 0.45 < scales.mean() < 0.55


def _is_scale(name):
    return name.endswith("weight") and ("norm" in name or "projection.1" in name)


def test_one_row_for_each_method(small, tmp_path, capsys):
    assert scratch.main([*small, "--methods", "sn", "ld"]) == 0
    for method, trained in (("sn", 8_005), ("ld", 8_000)):
        folder = tmp_path / "out" / "scratch" / method / "seed0"
        row = ExperimentRow.from_cells(pd.read_csv(folder / "experiment.csv", dtype=str).fillna("").iloc[0].to_dict())
        assert (row.status, row.method, row.trainable_parameters) == ("done", method, trained)
        assert row.n_train == 110  # 12 of a class, of which 1 is set aside
        assert row.n_test == 30
        assert row.training_memory_mb > 0
        assert row.iterations == 2 * (110 // 16)
        right = read_right(folder, 30)
        assert right.mean() == pytest.approx(row.accuracy, abs=1e-6)
        assert row.class_accuracy == pytest.approx(right.reshape(10, 3).mean(), abs=1e-6)
        assert len(pd.read_csv(folder / "curve.csv")) == 2
        assert (folder / "curve.png").stat().st_size > 1000
        assert json.loads((folder / "config.json").read_text())["method"] == method
    assert "test accuracy" in capsys.readouterr().out


def test_a_stopped_run_resumes_to_the_same_numbers(small, tmp_path, monkeypatch, capsys):
    flags = [*small, "--methods", "sn"]
    assert scratch.main(flags) == 0
    folder = tmp_path / "out" / "scratch" / "sn" / "seed0"
    whole = _numbers(folder)

    step = Training.step

    def step_and_signal(self):
        result = step(self)
        if self.iteration == 4:  # within the first epoch
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(Training, "step", step_and_signal)
    assert scratch.main([*flags, "--overwrite"]) == 130
    assert pd.read_csv(folder / "experiment.csv").status[0] == "interrupted"
    monkeypatch.setattr(Training, "step", step)
    assert scratch.main([*flags, "--resume"]) == 0
    np.testing.assert_array_equal(_numbers(folder), whole)
    before = (folder / "experiment.csv").read_bytes()
    assert scratch.main([*flags, "--resume"]) == 0  # nothing left to do
    assert (folder / "experiment.csv").read_bytes() == before
    assert "already done" in capsys.readouterr().out


def test_the_memory_of_the_first_steps_is_measured_once(monkeypatch):
    """After a resume, Adam's moments are there before the first step, and the peak above what is held is smaller."""
    held = iter([100, 130])
    monkeypatch.setattr(TrainingMemory, "_start", lambda _: next(held) * 10**6)
    monkeypatch.setattr("metakm.experiments.training_memory.resident_bytes", lambda _: 150 * 10**6)

    def steps(memory, number):
        for _ in range(number):
            memory.before_step(lambda: None)
            memory.after_step()
        return memory.mb

    assert steps(TrainingMemory(torch.device("cpu")), STEPS) == 50
    for mb, done in ((50, STEPS), (50, 7), (None, 1), (None, 7)):  # None: stopped before it was measured, or older
        resumed = TrainingMemory(torch.device("cpu"))
        resumed.resume(mb, done)
        assert steps(resumed, STEPS) == mb
    fresh = TrainingMemory(torch.device("cpu"))
    fresh.resume(None, 0)
    assert steps(fresh, STEPS) == 20


def test_a_stop_during_the_test_resumes_too(small, tmp_path, monkeypatch):
    flags = [*small, "--methods", "sn", "--epochs", "1"]
    correct = Training.correct

    def correct_and_signal(self, split, progress=lambda _: None):
        if split == "test":
            signal.raise_signal(signal.SIGINT)
        return correct(self, split, progress)

    monkeypatch.setattr(Training, "correct", correct_and_signal)
    assert scratch.main(flags) == 130
    monkeypatch.setattr(Training, "correct", correct)
    assert scratch.main([*flags, "--resume"]) == 0
    row = pd.read_csv(tmp_path / "out" / "scratch" / "sn" / "seed0" / "experiment.csv").iloc[0]
    assert (row.status, row.n_test) == ("done", 30)


def _numbers(folder):
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["loop"]["model"]
    row = pd.read_csv(folder / "experiment.csv").iloc[0]
    curve = pd.read_csv(folder / "curve.csv").drop(columns="seconds").to_numpy().ravel()
    return np.concatenate([curve, [row.accuracy], *(v.double().numpy().ravel() for v in state.values())])


def test_frozen_convolutions_stay_bit_equal(small, tmp_path):
    assert scratch.main([*small, "--methods", "km", "--epochs", "1"]) == 0
    folder = tmp_path / "out" / "scratch" / "km" / "seed0"
    after = torch.load(folder / "checkpoint.pt", weights_only=True)["loop"]["model"]
    before = scratch.method_setup("km", seed=0).model.state_dict()
    frozen = [name for name in before if name.endswith("original")]
    assert len(frozen) == 31
    for name in frozen:
        assert torch.equal(after[name], before[name])
    assert not torch.equal(after["fc.weight"], before["fc.weight"])


def test_an_earlier_run_is_not_touched_unasked(small, capsys):
    flags = [*small, "--methods", "sn", "--epochs", "1"]
    assert scratch.main(flags) == 0
    assert scratch.main(flags) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert scratch.main([*flags, "--resume", "--weight-decay", "0.5"]) == 2
    assert "weight_decay" in capsys.readouterr().err


def test_an_earlier_run_of_any_method_is_refused_before_the_first_is_trained(small, tmp_path, capsys):
    assert scratch.main([*small, "--methods", "ld", "--epochs", "1"]) == 0
    capsys.readouterr()
    both = [*small, "--methods", "sn", "ld", "--epochs", "1"]
    assert scratch.main(both) == 2
    assert "ld/seed0, which has an earlier run; add --resume" in capsys.readouterr().err
    assert not (tmp_path / "out" / "scratch" / "sn").exists()
    for more in ("--dry-run", "--resume"):
        assert scratch.main([*both, more]) == 0


def test_a_checkpoint_of_another_network_is_refused(small, tmp_path, capsys):
    flags = [*small, "--methods", "sn", "--epochs", "1"]
    assert scratch.main(flags) == 0
    path = tmp_path / "out" / "scratch" / "sn" / "seed0" / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    del state["loop"]["model"]["fc.bias"]
    torch.save(state, path)
    assert scratch.main([*flags, "--resume"]) == 2
    assert "fc.bias" in capsys.readouterr().err


def test_a_run_does_not_go_on_with_other_data(small, tmp_path, data_root, capsys):
    flags = [*small, "--methods", "sn", "--epochs", "1"]
    assert scratch.main(flags) == 0
    fewer = tmp_path / "fewer"
    shutil.copytree(data_root, fewer)
    for path in (fewer / "cifar10" / "train").rglob("0000.png"):
        path.unlink()
    assert scratch.main([*flags, "--resume", "--data-root", str(fewer)]) == 2
    assert "split hash" in capsys.readouterr().err


def test_a_tuning_run_leaves_the_test_part_alone(small, tmp_path, monkeypatch):
    asked = []
    correct = Training.correct
    monkeypatch.setattr(Training, "correct", lambda self, split, *a: asked.append(split) or correct(self, split, *a))
    assert scratch.main([*small, "--methods", "sn", "--tune", "--epochs", "1"]) == 0
    assert asked == ["val"]
    row = pd.read_csv(tmp_path / "out" / "scratch" / "sn" / "seed0" / "experiment.csv").iloc[0]
    assert np.isnan(row.accuracy)
    assert row.n_test == 0


def test_a_run_that_diverges_says_so(small, tmp_path, capsys):
    assert scratch.main([*small, "--methods", "sn", "--learning-rate", "1e30"]) == 1
    assert "not finite" in capsys.readouterr().err
    assert pd.read_csv(tmp_path / "out" / "scratch" / "sn" / "seed0" / "experiment.csv").status[0] == "failed"


def test_a_dry_run_writes_nothing(small, tmp_path, capsys):
    assert scratch.main([*small, "--methods", "sn", "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    assert json.loads(capsys.readouterr().out)["learning_rate"] > 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--batch", "500"], "--batch"),
        (["--epochs", "0"], "--epochs"),
        (["--learning-rate", "-1"], "--learning-rate"),
        (["--residual-start", "-0.1"], "--residual-start"),
        (["--resume", "--overwrite"], "drop one"),
        (["--data-root", "nowhere"], "cifar10-jpeg.tar.xz"),
    ],
)
def test_mistakes_are_told_in_one_line(small, flags, said, capsys):
    assert scratch.main([*small, "--methods", "sn", *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_the_paper_preset_is_the_published_schedule():
    config = scratch.PRESETS["paper"]
    assert (config.epochs, config.batch, config.weight_decay, config.image_size) == (200, 128, 1e-4, 32)
    run = scratch.method_config(config, "scratch", "full")
    assert (run.learning_rate, run.momentum) == (0.1, 0.9)


def test_the_last_norm_of_each_residual_block_starts_where_it_is_told():
    model = scratch.method_setup("km", seed=0, residual_start=0.2).model
    scales = {name: p for name, p in model.named_parameters() if "norm" in name and name.endswith("weight")}
    last = {name for name in scales if name.endswith("norm2.weight")}
    assert len(last) == 15
    assert all((scale == (0.2 if name in last else 1.0)).all() for name, scale in scales.items())
    plain = scratch.method_setup("km", seed=0).model.state_dict()
    assert all(torch.equal(plain[name], p) for name, p in model.named_parameters() if name not in last)


def test_all_methods_but_tbn_start_as_told():
    short = scratch.PRESETS["short"]
    for start in (1.0, 0.5):
        told = dataclasses.replace(short, residual_start=start)
        starts = {method: scratch.method_config(told, "scratch", method).residual_start for method in scratch.TABLE1}
        assert starts == {method: 1.0 if method == "tbn" else start for method in scratch.TABLE1}


def test_ld_constant_may_have_a_rate_of_its_own(monkeypatch):
    short = scratch.PRESETS["short"]

    def rates():
        return [scratch.method_config(short, "scratch", name).learning_rate for name in ("ld", "ld-constant")]

    monkeypatch.setitem(chosen_rates.SCRATCH_RATES, "short", {"ld": RateAndStart(3.0)})
    assert rates() == [3.0, 3.0]
    monkeypatch.setitem(
        chosen_rates.SCRATCH_RATES, "short", {"ld": RateAndStart(3.0), "ld-constant": RateAndStart(1.0)}
    )
    assert rates() == [3.0, 1.0]


def test_a_method_starts_as_was_chosen_unless_told(monkeypatch):
    monkeypatch.setitem(chosen_rates.SCRATCH_RATES, "short", {"km": RateAndStart(0.3, 0.2)})
    short = scratch.PRESETS["short"]

    def start(told):
        made = scratch.method_config(told, "scratch", "km")
        return made.learning_rate, made.residual_start

    assert start(short) == (0.3, 0.2)
    assert start(dataclasses.replace(short, learning_rate=0.1)) == (0.1, 0.2)
    assert start(dataclasses.replace(short, residual_start=0.0)) == (0.3, 0.0)


def test_without_a_held_out_part_it_is_trained_on_and_nothing_is_validated(small, tmp_path, capsys):
    assert scratch.main([*small, "--methods", "sn", "--no-hold-out"]) == 0
    folder = tmp_path / "out" / "scratch" / "sn" / "seed0"
    row = pd.read_csv(folder / "experiment.csv").iloc[0]
    assert row.n_train == 120
    assert pd.isna(row.val_accuracy)
    assert pd.read_csv(folder / "curve.csv").val_accuracy.isna().all()
    captured = capsys.readouterr()
    assert "validation" not in captured.out + captured.err
    assert scratch.main([*small, "--methods", "sn", "--no-hold-out", "--resume"]) == 0
    assert "already done" in capsys.readouterr().out
    flags = [*small, "--methods", "sn", "--no-hold-out", "--tune", "--out", str(tmp_path / "tune")]
    assert scratch.main(flags) == 0
    assert pd.read_csv(tmp_path / "tune" / "scratch" / "sn" / "seed0" / "experiment.csv").n_train[0] == 110


def test_a_run_that_replaces_a_tested_one_keeps_nothing_of_its_test(small, tmp_path):
    assert scratch.main([*small, "--methods", "sn"]) == 0
    assert scratch.main([*small, "--methods", "sn", "--tune", "--overwrite"]) == 0
    (run,), problems = read_experiments(tmp_path / "out")
    assert not problems
    assert (run.row.accuracy, run.right) == (None, None)


def test_a_method_that_diverges_does_not_keep_the_others_from_running(small, tmp_path, capsys):
    flags = [*small, "--methods", "sn", "ld", "--learning-rate", "1e30"]
    assert scratch.main(flags) == 1
    out = tmp_path / "out" / "scratch"
    assert [pd.read_csv(out / m / "seed0" / "experiment.csv").status[0] for m in ("sn", "ld")] == ["failed"] * 2
    assert scratch.main([*small, "--methods"]) == 2
    assert "--methods" in capsys.readouterr().err


def test_more_memory_is_told_for_more_training(data_root):
    """Of the first steps alone: what was evaluated before does not count."""
    data = scratch.load_cifar10(32, [data_root])
    told = {}
    for batch in (4, 64):
        run = scratch.method_config(dataclasses.replace(scratch.PRESETS["paper"], batch=batch), "scratch", "sn")
        setup = scratch.method_setup("sn", 0)
        training = Training(setup.model, data, run, torch.device("cpu"))
        training.correct("test")
        assert training.memory.mb is None
        for _ in range(3):
            training.step()
        told[batch] = training.memory.mb
    assert told[64] > told[4] + 5  # ResNet-8 of width 5 keeps more than 100 kB for each image


def test_the_published_ld_keeps_its_rate(small, tmp_path, monkeypatch):
    rates = {}
    step = torch.optim.SGD.step

    def record(optimiser, *arguments):
        rates.setdefault(method, []).append(optimiser.param_groups[0]["lr"])
        return step(optimiser, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", record)
    for method in ("ld", "ld-constant"):
        assert scratch.main([*small, "--methods", method, "--residual-start", "0.5"]) == 0
    assert set(rates["ld-constant"]) == {3.0}
    assert rates["ld"][-1] < 0.1 * rates["ld"][0]
    folder = tmp_path / "out" / "scratch" / "ld-constant" / "seed0"
    assert json.loads((folder / "config.json").read_text())["annealed"] is False
    assert pd.read_csv(folder / "experiment.csv").residual_start[0] == 0.5


def test_a_config_from_before_these_fields_is_the_same_line(small, tmp_path):
    for seed in (0, 1):
        assert scratch.main([*small, "--methods", "sn", "--epochs", "1", "--seed", str(seed)]) == 0
    older = tmp_path / "out" / "scratch" / "sn" / "seed0" / "config.json"
    values = json.loads(older.read_text())
    older.write_text(json.dumps({k: v for k, v in values.items() if k not in ("residual_start", "annealed")}))
    lines, left_out = lines_of(read_experiments(tmp_path / "out")[0])
    assert [len(line.rows) for line in lines] == [2]
    assert left_out == []


class Dropping(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 32 * 32, 10))


def small_training(data_root, model):
    run = scratch.method_config(dataclasses.replace(scratch.PRESETS["paper"], batch=4), "scratch", "sn")
    return Training(model, scratch.load_cifar10(32, [data_root]), run, torch.device("cpu"))


def test_dropout_is_that_of_the_seed_and_the_iteration(data_root):
    torch.manual_seed(0)
    first = small_training(data_root, Dropping())
    torch.manual_seed(0)
    second = small_training(data_root, Dropping())
    torch.rand(7)
    assert [first.step() for _ in range(3)] == [second.step() for _ in range(3)]


class Overflowing(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return x.clone()

    @staticmethod
    def backward(_, gradient):
        return gradient / 0


def test_a_gradient_that_is_not_finite_stops_before_the_step(data_root):
    training = small_training(data_root, Dropping())
    training.model.register_forward_hook(lambda _module, _inputs, logits: Overflowing.apply(logits))
    before = [p.clone() for p in training.parameters]
    with pytest.raises(DivergedError, match="or its gradient is not finite at iteration 0"):
        training.step()
    assert all(torch.equal(a, b) for a, b in zip(before, training.parameters, strict=True))


def test_a_file_in_the_place_of_the_folder_is_refused_before_the_data_are_read(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    flags = ["--out", str(tmp_path / "file"), "--data-root", str(tmp_path / "none")]
    assert scratch.main(flags) == 2
    assert "Expected --out to be a folder, got the file" in capsys.readouterr().err

"""Runs from Python: `metakm.train`, `metakm.evaluate`, warm starts, and runs that go on for longer."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from runs import numbers, small_config

import metakm
from metakm.cli.signals import StopRequest
from metakm.learning.divergence import DivergedError
from metakm.presets import preset_config
from metakm.run.checkpoint import load_checkpoint
from metakm.run.runner import Run
from metakm.table.__main__ import main as table

pytestmark = pytest.mark.float32


@pytest.fixture(autouse=True)
def environment(cache, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(cache))


def test_a_config_follows_its_preset_where_nothing_is_given():
    for preset, algo, dataset in (("table3", "anil", "mini-imagenet"), ("paper", "km", "omniglot")):
        made = metakm.RunConfig(preset=preset, algo=algo, dataset=dataset)
        assert made == preset_config(preset, algo, dataset)
    own = metakm.RunConfig(preset="table3", dataset="omniglot", ways=5, ema=0.5)
    assert own == preset_config("table3", dataset="omniglot", ways=5, ema=0.5)


def test_paths_may_be_strings(tmp_path):
    (tmp_path / "own.py").touch()
    names = ("out", "data_root", "log_dir", "init_from")
    config = small_config(str(tmp_path), **{name: str(tmp_path / name) for name in names[1:]}, plugin=["own.py"])
    assert [getattr(config, name) for name in names] == [tmp_path, *(tmp_path / name for name in names[1:])]
    assert config.plugin == metakm.RunConfig(plugin="own.py").plugin == (Path("own.py"),)
    run = metakm.train(small_config(str(tmp_path / "out")))
    assert metakm.evaluate(str(run.folder), data_root=str(tmp_path)).accuracy == run.accuracy


def test_a_name_that_only_a_plugin_would_have_says_how_to_load_it():
    with pytest.raises(metakm.UserError, match=r"got 'mine'.*--plugin \(in Python: metakm\.load_plugin"):
        metakm.RunConfig(algo="mine", plugin=("mine.py",))


def test_what_is_no_config_or_no_sampler_is_named():
    with pytest.raises(metakm.UserError, match=r"Expected a RunConfig, got \{'algo': 'km'\}"):
        metakm.train({"algo": "km"})
    glyphs = metakm.load_dataset("glyphs", split="test")
    learner = metakm.Learner("anil", backbone=metakm.Conv4(in_channels=1), ways=5, inner_lr=0.5, inner_steps=1)
    with pytest.raises(metakm.UserError, match="Expected a sampler of episodes, got FewShotDataset; make one"):
        learner.evaluate(glyphs, tasks=2)
    with pytest.raises(metakm.UserError, match=r"to be whole numbers, got \('5', 1, 5, 0\)$"):
        metakm.EpisodeSampler(glyphs, ways="5", shots=1, queries=5)


def test_a_misspelt_option_is_named_beside_the_nearest():
    with pytest.raises(metakm.UserError, match=r"got 'first_oder'; did you mean 'first_order'\?"):
        metakm.Learner("km", backbone=metakm.Conv4(in_channels=1), ways=5, inner_lr=0.5, inner_steps=1, first_oder=True)


def test_training_gives_the_run_that_its_folder_has(tmp_path):
    run = metakm.train(small_config(tmp_path))
    row = pd.read_csv(run.folder / "result.csv").iloc[0]
    assert (run.accuracy, run.interval) == (row.accuracy, row.ci95)
    found = metakm.evaluate(run)
    assert found.accuracy == row.accuracy
    reached = f"accuracy={row.accuracy:.4f}, interval={row.ci95:.4f}"
    assert repr(found).startswith(f"Evaluation({reached}, tasks=")
    assert repr(run) == f"TrainedRun({row.algo}, glyphs-{row.ways}w{row.shots}s, folder={str(run.folder)!r}, {reached})"
    assert found.accuracies.tolist() == pd.read_csv(run.folder / "tasks.csv").accuracy.tolist()
    assert metakm.evaluate(run.folder, tasks=3).accuracies.tolist() == found.accuracies[:3].tolist()
    assert metakm.evaluate(run, split="val", tasks=4).accuracy == pytest.approx(row.val_accuracy)
    assert metakm.evaluate(run, shots=2, tasks=3, queries=5).accuracies.shape == (3,)
    loaded = metakm.Learner.load(run.folder / "weights.safetensors")
    images = torch.rand(3, *run.image_shape)
    assert torch.equal(loaded.adapt(images, "abc")(images), run.adapt(images, "abc")(images))


def test_a_failure_is_an_exception(tmp_path, monkeypatch):
    monkeypatch.setattr("metakm.learning.outer_loop.is_finite", lambda *_: False)
    with pytest.raises(DivergedError):
        metakm.train(small_config(tmp_path))
    with pytest.raises(metakm.UserError, match="--overwrite"):
        metakm.train(small_config(tmp_path))


def test_a_run_starts_from_the_weights_of_another(tmp_path):
    first = metakm.train(small_config(tmp_path / "a"))
    second = metakm.train(small_config(tmp_path / "b", iterations=0, init_from=first.folder))
    assert all(torch.equal(t, second.learner.state_dict()[name]) for name, t in first.learner.state_dict().items())
    rows = [pd.read_csv(run.folder / "result.csv").iloc[0] for run in (first, second)]
    assert rows[1].accuracy == rows[0].accuracy
    assert pd.isna(rows[0].init_weights)
    assert len(rows[1].init_weights) == 64
    assert json.loads(rows[1].changes)["init_from"] == str(first.folder)
    assert rows[1].run_id != rows[0].run_id
    with pytest.raises(metakm.UserError, match=r"name a run of --backbone conv4-4-stride, got .* of conv4-8-stride"):
        metakm.train(small_config(tmp_path / "c", backbone="conv4-4-stride", init_from=first.folder))
    with pytest.raises(metakm.UserError, match=r"config\.json"):
        metakm.train(small_config(tmp_path / "c", init_from=tmp_path))
    assert not (tmp_path / "c").exists()


def test_a_finished_run_goes_on_to_the_results_of_a_longer_one(tmp_path):
    long = {"iterations": 8, "schedule": "constant", "select": "last", "ema": 0.9}
    whole = metakm.train(small_config(tmp_path / "whole", **long))
    metakm.train(small_config(tmp_path / "part", **{**long, "iterations": 4}))
    part = metakm.train(small_config(tmp_path / "part", **long, resume=True))
    assert numbers(part.folder) == numbers(whole.folder)
    assert part.config.iterations == 8
    again = metakm.train(small_config(tmp_path / "part", **{**long, "iterations": 8}, resume=True))
    assert again.accuracy == part.accuracy
    with pytest.raises(metakm.UserError, match=r"iterations=8 \(now 4\)"):
        metakm.train(small_config(tmp_path / "part", **{**long, "iterations": 4}, resume=True))


def test_a_run_that_was_extended_in_vain_is_still_what_it_was(tmp_path):
    config = small_config(tmp_path, schedule="constant", select="last")
    before = metakm.train(config)
    longer = dataclasses.replace(config, iterations=40, resume=True)
    with StopRequest() as stop:
        run = Run(longer, stop)
        stop.requested = True
        with pytest.raises(KeyboardInterrupt):  # before its first iteration
            run.execute()
    assert metakm.load_run(config.folder).accuracy == before.accuracy
    assert table([str(tmp_path)]) == 0

    class Stop(metakm.Callback):
        def on_iteration(self, _event):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # after it
        metakm.train(longer, callbacks=[Stop()])
    after = metakm.load_run(config.folder)
    assert after.config.iterations == 40
    assert not (config.folder / "weights.safetensors").exists()
    tensors = before.learner.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in after.learner.state_dict().items())


def test_a_schedule_that_ends_cannot_go_on(tmp_path):
    metakm.train(small_config(tmp_path))
    with pytest.raises(metakm.UserError, match=r"iterations=4 \(now 8\)"):
        metakm.train(small_config(tmp_path, iterations=8, resume=True))


def test_a_checkpoint_of_metakm_0_2_goes_on(tmp_path):
    options = {"learn_inner_lr": True, "schedule": "constant"}
    whole = metakm.train(small_config(tmp_path / "whole", **options))
    metakm.train(small_config(tmp_path / "old", **{**options, "iterations": 2}))
    config = small_config(tmp_path / "old", **options, resume=True)
    path = config.folder / "checkpoint.pt"
    state = load_checkpoint(path, dataclasses.replace(config, iterations=2))
    for part in (state["best"], state["loop"]):
        flat = part["model"]
        rates = [flat[f"rates.{i}"] for i in range(sum(name.startswith("rates.") for name in flat))]
        strategy = {name.removeprefix("strategy."): t for name, t in flat.items() if name.startswith("strategy.")}
        part["model"] = {"strategy": strategy, "rates": rates}
    torch.save({**state, "format": 1}, path)
    assert numbers(metakm.train(config).folder) == numbers(whole.folder)


def test_a_dry_run_trains_nothing_and_no_tasks_test_nothing(tmp_path):
    with pytest.raises(metakm.UserError, match="Expected dry_run=False to train, got True"):
        metakm.train(dataclasses.replace(small_config(tmp_path), dry_run=True))
    run = metakm.train(small_config(tmp_path))
    sampler = metakm.EpisodeSampler(metakm.load_dataset("glyphs", split="test"), ways=3, shots=1, queries=1)
    with pytest.raises(metakm.UserError, match="Expected tasks to be at least 1, got 0"):
        run.learner.evaluate(sampler, tasks=0)

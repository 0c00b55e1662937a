"""Runs on data that are given as objects: three datasets, or three samplers of episodes."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from runs import numbers

import metakm
from metakm.presets import preset_config
from metakm.registry import isolated
from metakm.run.evaluate import main as evaluate
from metakm.strategies.anil import ANIL

pytestmark = pytest.mark.float32
SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def environment(cache, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    with isolated():
        yield


def small(out, **changes):
    settings = {
        "algo": "anil", "ways": 3, "queries": 2, "backbone": "conv4-4-stride", "meta_batch": 2, "iterations": 4,
        "val_every": 2, "val_tasks": 4, "eval_tasks": 6, "device": "cpu", "quiet": True, "out": out,
    }  # fmt: skip
    return preset_config(**{**settings, **changes})


def dots(seed, name="dots", classes=5, size=28, channels=1):
    images = np.random.default_rng(seed).integers(0, 256, (classes * 6, channels, size, size), dtype=np.uint8)
    return metakm.FewShotDataset.from_arrays(images, np.repeat(np.arange(classes), 6), name=name)


def three(**changes):
    return tuple(dots(seed, **changes) for seed in range(3))


def test_data_of_ones_own_do_not_take_the_name_of_others(tmp_path):
    with pytest.raises(metakm.UserError, match=r"name of your own .* got 'glyphs', whose train split is another"):
        metakm.train(small(tmp_path), dataset=three(name="glyphs"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("algo", ["baseline", "simpleshot"])
def test_samplers_that_do_not_number_their_classes_are_refused_for_what_classifies_them(tmp_path, algo):
    with pytest.raises(metakm.UserError, match="Expected a FewShotDataset to train"):
        metakm.train(small(tmp_path, algo=algo, test_queries=2), dataset=[Source(split) for split in SPLITS])
    assert list(tmp_path.iterdir()) == []


def row(run):
    return pd.read_csv(run.folder / "result.csv").iloc[0]


def test_datasets_of_ones_own_train_and_test_a_run(tmp_path):
    run = metakm.train(small(tmp_path), dataset=three())
    assert run.folder == tmp_path / "dots-3w1s" / "anil" / "seed0"
    assert (row(run).dataset, row(run).status) == ("dots", "done")
    assert metakm.evaluate(run).accuracy == run.accuracy
    assert metakm.load_run(run.folder).config.dataset == "dots"
    by_name = metakm.train(small(tmp_path / "b"), dataset=dict(zip(SPLITS, three(), strict=True)))
    assert numbers(by_name.folder) == numbers(run.folder)
    others = metakm.train(small(tmp_path / "c"), dataset=[dots(seed) for seed in (3, 4, 5)])
    assert row(others).accuracy == metakm.evaluate(others).accuracy != row(run).accuracy


def test_the_splits_of_a_known_dataset_give_its_run(tmp_path):
    known = metakm.train(small(tmp_path / "a", dataset="glyphs"))
    splits = [metakm.load_dataset("glyphs", split=split) for split in SPLITS]
    passed = metakm.train(small(tmp_path / "b"), dataset=splits)
    named = metakm.train(small(tmp_path / "c"), dataset="glyphs")
    assert numbers(passed.folder) == numbers(known.folder) == numbers(named.folder)
    assert row(passed).run_id == row(known).run_id


def test_a_run_on_ones_own_data_is_resumed_and_refuses_other_data(tmp_path):
    whole = metakm.train(small(tmp_path / "whole"), dataset=three())

    class Interrupt(metakm.Callback):
        def on_iteration(self, event):
            if event.number == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        metakm.train(small(tmp_path / "part"), dataset=three(), callbacks=[Interrupt()])
    for changed, split in enumerate(SPLITS):
        data = [dots(seed, classes=4 if seed == changed else 5) for seed in range(3)]
        with pytest.raises(metakm.UserError, match=f"Expected the {split} data of the run to resume"):
            metakm.train(small(tmp_path / "part", resume=True), dataset=data)
    part = metakm.train(small(tmp_path / "part", resume=True), dataset=three())
    assert numbers(part.folder) == numbers(whole.folder)


class Source:
    """A sampler of somebody's own."""

    def __init__(self, split, shift=0.0):
        data = dataclasses.replace(dots(SPLITS.index(split)), split=split)
        self.inner, self.shift = metakm.EpisodeSampler(data, ways=3, shots=1, queries=2), shift

    def batch(self, index, tasks):
        drawn = self.inner.batch(index, tasks)
        images = {name: getattr(drawn, name) + self.shift for name in ("support_images", "query_images")}
        return dataclasses.replace(drawn, **images, classes=None)


def test_samplers_of_ones_own_feed_the_same_trainer(tmp_path):
    expected = metakm.train(small(tmp_path / "a"), dataset=three())
    run = metakm.train(small(tmp_path / "b"), dataset=[Source(split) for split in SPLITS])
    assert (run.accuracy, run.interval) == (expected.accuracy, expected.interval)
    assert row(run).dataset == "custom"
    assert len(row(run).split_hash) == len(row(run).episodes_hash) == 16
    assert run.learner.evaluate(Source("test"), tasks=6).accuracy == run.accuracy
    with pytest.raises(metakm.UserError, match=r"run\.learner\.evaluate"):
        metakm.evaluate(run)
    done = metakm.train(small(tmp_path / "b", resume=True), dataset=[Source(split) for split in SPLITS])
    assert done.accuracy == run.accuracy
    longer = small(tmp_path / "b", schedule="constant", overwrite=True)
    metakm.train(longer, dataset=[Source(split) for split in SPLITS])
    longer = dataclasses.replace(longer, overwrite=False, resume=True, iterations=6)
    with pytest.raises(metakm.UserError, match="split hash"):
        metakm.train(longer, dataset=[Source(split, shift=0.5) for split in SPLITS])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: three()[:2], "its splits train, val, test, got tuple"),
        (lambda: {"train": dots(0)}, r"train, val, test, got \['train'\]"),
        (lambda: (dots(0), dots(1), "test"), "test split to be a FewShotDataset .* got str"),
        (lambda: (dots(0), dots(1), dots(2, name="lines")), "splits of one dataset, got those of dots, lines"),
        (lambda: three(name="../dots"), r"letters, digits, .*, got '\.\./dots'"),
        (lambda: (dots(0), dots(1), dots(2, size=20)), "images of one shape in all splits"),
        (lambda: three(classes=2), "at most 2 ways"),
        (lambda: "dotz", "Expected dataset to be one of"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, data, message):
    with pytest.raises(metakm.UserError, match=message):
        metakm.train(small(tmp_path), dataset=data())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": 4}, "train episodes of 4 ways and 1 shots"),
        ({"shots": 2}, "train episodes of 3 ways and 2 shots"),
        ({"test_queries": 1}, "val episodes of 3 ways and 1 queries"),
        ({"dataset": "mini-imagenet", "augment": True}, "leave augment out"),
    ],
)
def test_samplers_of_other_tasks_are_refused(tmp_path, changes, message):
    with pytest.raises(metakm.UserError, match=message):
        metakm.train(small(tmp_path, **changes), dataset=[Source(split) for split in SPLITS])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "shape", "message"),
    [
        ("support_labels", (3, 1), "got targets of floating point; train a regression by a Learner"),
        ("support_images", (3, 5), r"Expected images \[T, n, C, H, W\], got \[1, 3, 5\] for train"),
    ],
)
def test_targets_of_a_regression_and_inputs_that_are_no_images_are_refused(tmp_path, field, shape, message):
    class Other(Source):
        def batch(self, index, tasks):
            return dataclasses.replace(super().batch(index, tasks), **{field: torch.rand(tasks, *shape)})

    with pytest.raises(metakm.UserError, match=message):
        metakm.train(small(tmp_path), dataset=[Other(split) for split in SPLITS])


LOSSES = {
    "inner_loss": lambda *_: torch.zeros((), requires_grad=True),
    "metric": lambda _self, logits, _labels: logits,
    "outer_loss": lambda *_: None,
}


@pytest.mark.parametrize("name", [*LOSSES, "predict"])
def test_losses_and_metrics_that_do_not_work_are_refused_before_anything_is_written(tmp_path, name):
    def fails(*_):
        raise ZeroDivisionError("no such luck")

    metakm.register_strategy("odd")(type("Odd", (ANIL,), {name: LOSSES.get(name, fails)}))
    said = "no such luck" if name == "predict" else rf"Expected Odd\.{name} to return"
    with pytest.raises(metakm.UserError, match=said):
        metakm.train(small(tmp_path, algo="odd"))
    assert list(tmp_path.iterdir()) == []


def test_losses_that_raise_are_named(tmp_path):
    def inner_loss(_self, _logits, labels):
        raise ValueError(labels.shape)

    metakm.register_strategy("odd")(type("Odd", (ANIL,), {"inner_loss": inner_loss}))
    with pytest.raises(metakm.UserError, match=r"Odd to learn from a task, got ValueError: .*test_own_data\.py"):
        metakm.train(small(tmp_path, algo="odd"))
    assert list(tmp_path.iterdir()) == []


def test_a_metric_that_is_no_number_is_null_for_scripts(tmp_path, capsys):
    metric = {"metric": lambda _self, logits, _labels: torch.full((len(logits),), torch.nan, dtype=torch.float64)}
    metakm.register_strategy("nothing")(type("Nothing", (ANIL,), metric))
    metakm.train(small(tmp_path, algo="nothing", json=True))
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["val_accuracy"] for line in told if line["event"] == "validation"} == {None}
    assert [line["accuracy"] for line in told if line["event"] == "result"] == [None]


def test_a_metric_of_ones_own_is_no_percentage(tmp_path, capsys):
    metric = {"metric": lambda _self, logits, _labels: logits.abs().mean((1, 2)).double() - 1}
    metakm.register_strategy("gap")(type("Gap", (ANIL,), metric))
    run = metakm.train(small(tmp_path, algo="gap"))
    said = capsys.readouterr().out
    assert f"meta-test metric {run.accuracy:.4g} +- {run.interval:.4g} (95 % interval over 6 tasks)" in said
    assert evaluate([str(run.folder), "--quiet", "--eval-tasks", "4", "--device", "cpu"]) == 0
    first = pd.read_csv(run.folder / "tasks.csv").accuracy[:4].mean()
    assert f", +0 +- 0 relative to {first:.4g} on the same 4 tasks in its row" in capsys.readouterr().out


def test_a_run_that_is_tested_on_other_data_of_its_name_says_so(tmp_path, caplog):
    run = metakm.train(small(tmp_path / "a"), dataset=three())
    metakm.evaluate(run)
    assert caplog.text == ""
    metakm.train(small(tmp_path / "b"), dataset=three(classes=6))
    metakm.evaluate(metakm.load_run(run.folder))
    assert "the data called dots are not those that the run was trained on" in caplog.text


def test_evaluate_tests_on_the_runs_own_data_though_another_run_took_the_name(tmp_path):
    first = metakm.train(small(tmp_path / "first"), dataset=three())
    metakm.train(small(tmp_path / "second"), dataset=tuple(dots(seed) for seed in (7, 8, 9)))
    assert metakm.evaluate(first).accuracy == first.accuracy

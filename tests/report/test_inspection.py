"""What a trained run is seen to do, against its own files and against plain PyTorch."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import conv4, modulate
from runs import table_of

import metakm
from metakm.config import RunConfig
from metakm.errors import UserError
from metakm.report.inspection import inspect_cells, inspect_run
from metakm.run.checkpoint import save_checkpoint
from metakm.table.collect import read_runs


@pytest.fixture(autouse=True)
def environment(cache, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(cache))


def run_of(folder, algo="km"):
    return next(run for run in read_runs(folder).runs if run.row.algo == algo)


@pytest.fixture
def km(trained, tmp_path):
    """A copy of the KM run, to be damaged."""
    shutil.copytree(trained / "glyphs-3w1s/km/seed0", tmp_path / "km")
    return tmp_path / "km"


@pytest.mark.float32
@pytest.mark.parametrize("algo", ["km", "anil", "maml"])
def test_predictions_are_those_behind_the_first_lines_of_tasks_csv(trained, algo):
    run = run_of(trained, algo)
    found = inspect_run(run, episodes=4)
    assert found.predictions.shape == (4, 3, 2)
    right = found.predictions == np.arange(3)[:, None]
    assert right.mean(axis=(1, 2)) == pytest.approx(run.accuracies[:4])
    assert 0 < right.mean() < 1, "choose runs that are neither always right nor always wrong"


@pytest.mark.float32
def test_pictures_are_those_of_the_meta_test_episodes(trained):
    found = inspect_run(run_of(trained), episodes=9)
    sampler = metakm.EpisodeSampler(metakm.load_dataset("glyphs", split="test"), ways=3, shots=1, queries=2, seed=0)
    assert [episode.index for episode in found.episodes] == list(range(6)), "no more than were tested"
    for episode in found.episodes:
        batch = sampler.batch(episode.index, 1)
        assert (batch.support_images[0].numpy() * 255 == episode.support.reshape(3, 1, 28, 28)).all()
        assert (batch.query_images[0].numpy() * 255 == episode.query.reshape(6, 1, 28, 28)).all()


def test_kernels_equal_those_of_a_hand_written_inner_loop(trained):
    run = run_of(trained)
    found = inspect_run(run, episodes=2)
    saved = torch.load(run.path.with_name("checkpoint.pt"), weights_only=True)["best"]["model"]
    saved = {name.removeprefix("strategy."): tensor.double() for name, tensor in saved.items()}
    network = {k.removeprefix("network."): v for k, v in saved.items() if k.startswith("network.")}
    kernels = [name for name in network if name.endswith("conv.weight")]
    layers = [[saved[f"adapted.modulators.modulators.{i}.layers.{j}"] for j in (0, 1)] for i in range(4)]
    adapted = {f"u{i}.{j}": u for i, pair in enumerate(layers) for j, u in enumerate(pair)}
    adapted |= {name: v for name, v in network.items() if name.endswith("conv.bias") or name.startswith("head")}

    def modulated(fast):
        return [modulate(network[name], fast[f"u{i}.0"], fast[f"u{i}.1"]) for i, name in enumerate(kernels)]

    def logits(fast, images):
        return conv4({**network, **fast, **dict(zip(kernels, modulated(fast), strict=True))}, images, "stride")

    for task, episode in enumerate(found.episodes):
        fast = {name: value.requires_grad_() for name, value in adapted.items()}
        support, query = (torch.from_numpy(x).double().flatten(0, 1) / 255 for x in (episode.support, episode.query))
        support, query = support.float().double(), query.float().double()  # as the sampler rounds them
        for _ in range(run.row.test_inner_steps):
            loss = F.cross_entropy(logits(fast, support), torch.arange(3))
            gradients = torch.autograd.grad(loss, list(fast.values()))
            fast = {k: v - run.row.inner_lr * g for (k, v), g in zip(fast.items(), gradients, strict=True)}
        assert (logits(fast, query).argmax(1).reshape(3, 2).numpy() == found.predictions[task]).all()
        for layer, name, before, after in zip(found.kernels, kernels, modulated(adapted), modulated(fast), strict=True):
            assert layer.layer == f"network.{name.removesuffix('.weight')}"
            np.testing.assert_array_equal(layer.learned, network[name])
            np.testing.assert_allclose(layer.learned_used, before.detach(), atol=1e-12)
            np.testing.assert_allclose(layer.adapted[task], after.detach(), atol=1e-10)
            assert abs(layer.adapted[task] - layer.learned_used).max() > 1e-5, "adaptation moves the kernels"


@pytest.mark.float32
def test_who_modulates_and_who_adapts_kernels(trained):
    seen = {algo: inspect_run(run_of(trained, algo), episodes=1).kernels for algo in ("km", "anil", "maml")}
    assert {algo: {(k.modulated, k.adapts) for k in layers} for algo, layers in seen.items()} == {
        "km": {(True, True)},
        "anil": {(False, False)},
        "maml": {(False, True)},
    }
    for layer in seen["km"]:
        assert layer.start_used == pytest.approx(np.tanh(layer.start), abs=0.05), "W~ starts near tanh(W)"
        assert not np.array_equal(layer.start, layer.learned)
    step = seen["maml"][0].adapted[0] - seen["maml"][0].learned
    ratio = np.linalg.norm(step) / np.linalg.norm(seen["maml"][0].learned)
    assert seen["maml"][0].change == pytest.approx(ratio)


def refused(path, message, **options):
    with pytest.raises(UserError, match=message):
        inspect_run(read_runs(path).runs[0], episodes=1, **options)


def said_to_be_of(folder, settings):
    """Let the checkpoint of a run be of other settings; its weights go."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    state = {k: v for k, v in state.items() if k not in ("format", "config")}
    save_checkpoint(folder / "checkpoint.pt", RunConfig.from_json(settings), state)
    (folder / "weights.safetensors").unlink()


@pytest.mark.float32
def test_a_run_that_cannot_be_looked_into_is_refused_by_name(km):
    checkpoint, config = km / "checkpoint.pt", km / "config.json"
    row, settings, state = (p.read_bytes() for p in (km / "result.csv", config, checkpoint))
    episodes = read_runs(km).runs[0].row.episodes_hash.encode()
    (km / "result.csv").write_bytes(row.replace(episodes, b"0" * 16))
    refused(km, "Expected the test episodes")
    (km / "result.csv").write_bytes(row)
    (km / "weights.safetensors").unlink()
    checkpoint.write_bytes(state[:100])
    refused(km, "damaged or foreign")
    save_checkpoint(checkpoint, RunConfig.from_json(json.loads(settings)), {"best": {"model": {"strategy": {}}}})
    refused(km, "Expected the parameters of km")
    checkpoint.unlink()
    refused(km, r"Expected a trained run, got .* without weights\.safetensors or checkpoint\.pt")
    config.unlink()
    refused(km, r"settings in .*config\.json")


@pytest.mark.float32
def test_weights_will_do_where_the_checkpoint_stayed_behind(km):
    (run,) = read_runs(km).runs
    whole = inspect_run(run, episodes=2)
    (km / "checkpoint.pt").unlink()
    alone = inspect_run(run, episodes=2)
    assert np.array_equal(alone.predictions, whole.predictions)
    for one, other in zip(alone.kernels, whole.kernels, strict=True):
        assert np.array_equal(one.adapted, other.adapted)
        assert np.array_equal(one.start, other.start)


@pytest.mark.float32
def test_missing_data_are_a_reason_not_to_look_into_a_run(km, tmp_path, monkeypatch):
    monkeypatch.setenv("METAKM_DATA", str(tmp_path / "nothing"))
    settings = {**json.loads((km / "config.json").read_text()), "dataset": "mini-imagenet"}
    (km / "config.json").write_text(json.dumps(settings))
    row = (km / "result.csv").read_text()
    (km / "result.csv").write_text(row.replace(",km,glyphs,", ",km,mini-imagenet,"))
    said_to_be_of(km, settings)
    seen, reasons = inspect_cells(table_of(km).cells, episodes=1)
    assert not seen
    assert len(reasons) == 1
    assert "mini-imagenet" in reasons[0]
    assert str(tmp_path / "nothing") in reasons[0]
    refused(km, "elsewhere", data_root=tmp_path / "elsewhere")


@pytest.mark.float32
def test_a_data_root_of_another_machine_is_not_asked(km, tmp_path, monkeypatch):
    roots, load = [], metakm.load_dataset
    monkeypatch.setattr("metakm.run.build.load_dataset", lambda *a, **k: roots.append(k["root"]) or load(*a, **k))
    settings = {**json.loads((km / "config.json").read_text()), "data_root": str(tmp_path / "theirs")}
    (km / "config.json").write_text(json.dumps(settings))
    seen, _ = inspect_cells(table_of(km).cells, episodes=1)
    assert (len(seen), roots) == (1, [None])
    (tmp_path / "theirs").mkdir()
    inspect_cells(table_of(km).cells, episodes=1)
    assert roots == [None, tmp_path / "theirs"]


@pytest.mark.float32
def test_a_plugin_that_the_run_names_is_not_executed(km, tmp_path):
    plugin = tmp_path / "plugin.py"
    plugin.write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    settings = {**json.loads((km / "config.json").read_text()), "plugin": [str(plugin)]}
    (km / "config.json").write_text(json.dumps(settings))
    assert inspect_run(read_runs(km).runs[0], episodes=1).predictions.shape == (1, 3, 2)
    assert not (tmp_path / "executed").exists()


@pytest.mark.float32
def test_each_cell_is_shown_by_its_first_run_that_can_be(km):
    second = km.parent / "second"
    shutil.copytree(km, second)
    for name in ("result.csv", "config.json"):
        (second / name).unlink()
    run = run_of(km.parent)
    row = dataclasses.replace(run.row, seed=1)
    (second / "result.csv").write_text(row.to_csv())
    settings = {**json.loads((km / "config.json").read_text()), "seed": 1}
    (second / "config.json").write_text(json.dumps(settings))
    said_to_be_of(second, settings)
    (km / "weights.safetensors").unlink()
    (cell,) = table_of(km.parent).cells
    assert cell.n_seeds == 2
    assert list(inspect_cells([cell], 1)[0]) == [km / "result.csv"]
    (km / "checkpoint.pt").unlink()
    assert [list(found) for found in inspect_cells([cell], 1)] == [[second / "result.csv"], []]
    (second / "checkpoint.pt").unlink()
    seen, reasons = inspect_cells([cell], 1)
    assert (len(seen), len(reasons)) == (0, 2)

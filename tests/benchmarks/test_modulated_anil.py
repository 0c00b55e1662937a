"""The control that shares KM's parametrisation and ANIL's inner loop."""

import copy
from pathlib import Path

import pytest
import torch

import metakm
from metakm.registry import isolated, load_plugin
from metakm.run.__main__ import main
from metakm.strategies.network import make_head

PLUGIN = Path(__file__).parents[2] / "benchmarks" / "modulated_anil.py"

BACKBONE = {"in_channels": 1, "filters": 4, "bn_mode": "transductive"}


@pytest.fixture
def strategy():
    torch.manual_seed(0)
    with isolated():
        load_plugin(PLUGIN)
        found = metakm.make_strategy("modulated-anil", backbone=metakm.Conv4(**BACKBONE), ways=5)
        with torch.no_grad():
            for parameter in found.modulators.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        yield found


@pytest.fixture
def tasks():
    data = metakm.load_dataset("glyphs")
    return metakm.EpisodeSampler(data, ways=5, shots=1, queries=3, seed=0).batch(index=0, tasks=2)


def test_it_is_anil_on_a_network_with_the_modulated_kernels(strategy, tasks):
    plain = metakm.make_strategy("anil", backbone=copy.deepcopy(strategy.backbone), ways=5)
    plain.adapted.load_state_dict(strategy.adapted.state_dict())
    kernels = {name: strategy.backbone.get_parameter(name) for name in strategy.modulators.weight_names}
    with torch.no_grad():
        for name, kernel in strategy.modulators(kernels).items():
            assert not torch.allclose(kernel, kernels[name])
            plain.backbone.get_parameter(name).copy_(kernel)
    ours, theirs = (metakm.meta_loss(each, tasks, inner_lr=0.1, inner_steps=3) for each in (strategy, plain))
    torch.testing.assert_close(ours.loss, theirs.loss)
    torch.testing.assert_close(ours.accuracy, theirs.accuracy)


def test_the_outer_loop_trains_kernels_and_modulators_and_the_inner_loop_the_head_alone(strategy, tasks):
    metakm.meta_loss(strategy, tasks, inner_lr=0.1, inner_steps=2).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in strategy.modulators.parameters())
    assert all(strategy.backbone.get_parameter(name).grad is not None for name in strategy.modulators.weight_names)
    assert strategy.parameter_counts()[0] == sum(p.numel() for p in make_head(strategy.backbone, 5).parameters())


def test_it_is_a_plugin_of_the_command(tmp_path):
    flags = ["--ways", "5", "--iterations", "1", "--eval-tasks", "2", "--val-tasks", "2", "--device", "cpu"]
    own = ["--plugin", str(PLUGIN), "--algo", "modulated-anil", "--dataset", "glyphs", "--out", str(tmp_path)]
    with isolated():
        assert main([*own, *flags]) == 0
    assert (tmp_path / "glyphs-5w1s" / "modulated-anil" / "seed0" / "result.csv").is_file()

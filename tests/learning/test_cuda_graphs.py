"""Recorded meta-gradients: when they are recorded, and on a GPU that they are the same."""

import logging

import pytest
import torch
from loops import learner_of
from small import random_episodes, small_strategy, strategies_with

import metakm
from metakm.config import RunConfig
from metakm.data import Episodes
from metakm.learning.cuda_graphs import CudaGraphs, MetaGradient
from metakm.learning.outer_loop import OuterLoop
from metakm.presets import preset_config
from metakm.strategies.registry import strategy_class

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def episodes(tasks=2, seed=0):
    made = random_episodes(tasks=tasks, seed=seed)
    return Episodes(**vars(made), index=range(seed, seed + tasks))


def gradient_of(given):
    return MetaGradient(given.support_images.sum(), given.query_images.sum((1, 2, 3, 4)), ())


class FakeGraph:
    """Counts what a recording is asked for, and answers as one."""

    made = 0

    def __init__(self, differentiate, _):
        self.differentiate = differentiate
        FakeGraph.made += 1

    def replay(self, given):
        return self.differentiate(given)


@pytest.fixture
def recordings(monkeypatch):
    monkeypatch.setattr("metakm.learning.cuda_graphs._CudaGraph", FakeGraph)
    FakeGraph.made = 0
    return CudaGraphs()


def test_each_size_is_recorded_when_it_comes_up_again_and_answers_for_its_own_episodes(recordings):
    made = []
    for size, seed in ((2, 0), (2, 1), (2, 2), (1, 3), (2, 4), (1, 5)):
        given = episodes(size, seed)
        assert recordings.run(gradient_of, given).loss == gradient_of(given).loss
        made.append(FakeGraph.made)
    assert made == [0, 1, 1, 1, 1, 2]


def test_what_cannot_be_recorded_runs_as_usual_and_the_log_says_so(monkeypatch, caplog):
    def refuse(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("metakm.learning.cuda_graphs._CudaGraph", refuse)
    recordings = CudaGraphs()
    with caplog.at_level(logging.WARNING):
        losses = [recordings.run(gradient_of, episodes()).loss for _ in range(4)]
    assert losses == [gradient_of(episodes()).loss] * 4
    assert caplog.text.count("no CUDA graph (operation not permitted") == 1


def test_a_recording_that_runs_out_of_memory_says_so_to_the_outer_loop(monkeypatch):
    def too_large(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("metakm.learning.cuda_graphs._CudaGraph", too_large)
    recordings = CudaGraphs()
    recordings.run(gradient_of, episodes())
    with pytest.raises(torch.cuda.OutOfMemoryError):
        recordings.run(gradient_of, episodes())


def test_what_is_cleared_is_recorded_anew(recordings):
    for _ in range(2):
        recordings.run(gradient_of, episodes())
    recordings.clear()
    made = []
    for _ in range(2):
        recordings.run(gradient_of, episodes())
        made.append(FakeGraph.made)
    assert made == [1, 2]


def test_strategies_that_count_the_classes_of_a_support_set_are_not_recorded():
    waiting = {name for name in metakm.available_strategies() if not strategy_class(name).supports_cuda_graph}
    assert waiting == {"protonet", "r2d2", "anil-proto", "km-proto", "maml-proto"}


class Sampler:
    dataset = type("Dataset", (), {"image_shape": (1, 14, 14)})

    def batch(self, index, tasks):
        made = random_episodes(tasks=tasks, seed=index)
        return Episodes(**{k: v.float() if v.is_floating_point() else v for k, v in vars(made).items()},
                        index=range(index, index + tasks))  # fmt: skip


def loop(algo, **changes) -> OuterLoop:
    settings = {
        "ways": 4,
        "shots": 2,
        "queries": 3,
        "meta_batch": 4,
        "inner_lr": 0.4,
        "inner_steps": 2,
        "iterations": 10,
    }
    config: RunConfig = preset_config(algo=algo, **(settings | changes))
    return OuterLoop(learner_of(small_strategy(algo).float(), config), Sampler(), config, torch.device("cuda"))


@needs_gpu
@pytest.mark.float32
@pytest.mark.parametrize("changes", [{}, {"task_chunk": 3, "grad_clip": 0.01}], ids=["whole", "chunks"])
@pytest.mark.parametrize("algo", metakm.available_strategies())
def test_replayed_iterations_are_those_launched_one_by_one(algo, changes):
    recorded, eager = loop(algo, **changes), loop(algo, eager=True, **changes)
    assert [recorded.step() for _ in range(5)] == [eager.step() for _ in range(5)]
    assert all(
        torch.equal(p, q) for p, q in zip(recorded.strategy.parameters(), eager.strategy.parameters(), strict=True)
    )


@needs_gpu
@pytest.mark.float32
@pytest.mark.parametrize("algo", strategies_with("inner_lr_per_step"))
def test_a_run_resumed_on_a_gpu_goes_on_as_if_never_stopped(algo):
    rates = {"learn_inner_lr": True, "inner_lr_per_step": True}
    unbroken, first, second = (loop(algo, **rates) for _ in range(3))
    expected = [unbroken.step() for _ in range(6)]
    assert [first.step() for _ in range(3)] == expected[:3]
    second.load_state(first.state())
    assert [second.step() for _ in range(3)] == expected[3:]

"""metakm and learn2learn in both directions, and KM in learn2learn's own loop. Needs benchmarks/install_peers.sh."""

import importlib
import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import random_episodes, small_strategy
from torch import nn

import metakm
from metakm.learning.evaluation import accuracies
from metakm.presets import preset_config
from metakm.registry import isolated

LR, STEPS = 0.4, 3


@pytest.fixture(scope="module")
def l2l():
    return pytest.importorskip("learn2learn", reason="learn2learn is not installed (benchmarks/install_peers.sh)")


@pytest.fixture(scope="module")
def interop(l2l):
    assert l2l.__version__ == "0.2.0"
    return importlib.import_module("metakm.interop.learn2learn")


def plain_network(strategy, ways=4, filters=3):
    """The strategy's Conv4 and head in torch's own layers, with its weights; and its name of each parameter."""
    layers, names = [], {}
    for i in range(4):
        conv = nn.Conv2d(1 if i == 0 else filters, filters, 3, stride=2, padding=1)
        layers += [conv, nn.BatchNorm2d(filters, track_running_stats=False), nn.ReLU()]
        for kind in ("weight", "bias"):
            names[f"{3 * i}.{kind}"] = f"backbone.blocks.{i}.conv.{kind}"
            names[f"{3 * i + 1}.{kind}"] = f"backbone.blocks.{i}.norm.{kind}"
    names |= {"14.weight": "head.weight", "14.bias": "head.bias"}
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(filters, ways))
    network.load_state_dict({k: strategy.network.get_parameter(v).detach() for k, v in names.items()})
    return network, names


def learn2learn_loss(learner, episodes, **options):
    """A learn2learn user's loop: mean query loss over tasks."""
    losses = []
    for t in range(len(episodes.support_images)):
        clone = learner.clone()
        for _ in range(STEPS):
            loss = F.cross_entropy(clone(episodes.support_images[t]), episodes.support_labels[t])
            clone.adapt(loss, **options)
        losses.append(F.cross_entropy(clone(episodes.query_images[t]), episodes.query_labels[t]))
    return torch.stack(losses).mean()


def assert_same_gradients(network, names, strategy):
    for plain, own in names.items():
        expected = strategy.network.get_parameter(own).grad
        torch.testing.assert_close(network.get_parameter(plain).grad, expected, rtol=1e-9, atol=1e-13, msg=own)


@pytest.mark.parametrize("first_order", [False, True])
def test_the_meta_gradient_of_maml_is_learn2learns(l2l, first_order):
    strategy, episodes = small_strategy("maml", implicit=True), random_episodes()
    network, names = plain_network(strategy)
    theirs = learn2learn_loss(l2l.algorithms.MAML(network, lr=LR, first_order=first_order), episodes)
    theirs.backward()
    ours = metakm.meta_loss(strategy, episodes, inner_lr=LR, inner_steps=STEPS, first_order=first_order).loss
    ours.backward()
    torch.testing.assert_close(ours, theirs)
    assert_same_gradients(network, names, strategy)


def km_learner(interop, network, strategy, **options):
    """A learner on `network` that starts from the modulators of `strategy`."""
    learner = interop.KernelModulation(network, lr=LR, **options)
    learner.inner.module.modulators.load_state_dict(strategy.adapted.modulators.state_dict())
    return learner


@pytest.mark.parametrize("options", [{}, {"implicit": True}, {"depth": 3, "activation": "sin"}, {"init": "diagonal"}])
@pytest.mark.parametrize("first_order", [False, True])
def test_km_in_learn2learns_loop_has_the_meta_gradient_of_metakms_own_strategy(interop, options, first_order):
    strategy, episodes = small_strategy("km", **options), random_episodes()
    network, names = plain_network(strategy)
    learner = km_learner(interop, network, strategy, first_order=first_order, **options)
    theirs = learn2learn_loss(learner, episodes)
    theirs.backward()
    ours = metakm.meta_loss(strategy, episodes, inner_lr=LR, inner_steps=STEPS, first_order=first_order).loss
    ours.backward()
    torch.testing.assert_close(ours, theirs)
    assert_same_gradients(network, names, strategy)
    modulators = learner.inner.module.modulators
    for own, expected in zip(modulators.parameters(), strategy.adapted.modulators.parameters(), strict=True):
        assert expected.grad.abs().max() > 0
        torch.testing.assert_close(own.grad, expected.grad, rtol=1e-9, atol=1e-13)


def test_adapting_a_clone_leaves_the_learner_and_the_model_as_they_were(interop):
    strategy, episodes = small_strategy("km"), random_episodes(tasks=1)
    learner = interop.KernelModulation(plain_network(strategy)[0], lr=LR)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    clone = learner.clone()
    images, labels = episodes.support_images[0], episodes.support_labels[0]
    torch.testing.assert_close(clone(images), learner(images))
    start = F.cross_entropy(clone(images), labels)
    clone.adapt(start)
    assert F.cross_entropy(clone(images), labels) < start
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
    twice = clone.clone()
    torch.testing.assert_close(twice(images), clone(images))


def test_first_order_can_be_chosen_for_one_step(interop):
    strategy, episodes = small_strategy("km"), random_episodes()
    gradients = []
    for options in ({}, {"first_order": True}):
        learner = km_learner(interop, plain_network(strategy)[0], strategy)
        learn2learn_loss(learner, episodes, **options).backward()
        gradients.append(next(learner.inner.parameters()).grad)
    assert not torch.allclose(*gradients)


def test_each_parameter_of_the_learner_is_there_once_for_the_outer_optimiser(interop):
    network = nn.Sequential(nn.Conv2d(3, 4, (3, 5)), nn.Flatten(), nn.LazyLinear(2)).float()
    network(torch.rand(1, 3, 8, 8, dtype=torch.float32))
    learner = interop.KernelModulation(network, lr=LR)
    parameters = list(learner.parameters())
    assert len(parameters) == len(list(network.parameters())) + 2
    assert {p.dtype for p in parameters} == {torch.float32}, "modulators in the model's precision"
    torch.optim.Adam(parameters)
    with pytest.raises(metakm.UserError, match="Conv2d"):
        interop.KernelModulation(nn.Linear(2, 2), lr=LR)


@pytest.mark.parametrize("implicit", [False, True])
def test_any_convnet_of_the_users_learns_in_the_outer_loop(interop, implicit):
    norm = nn.BatchNorm2d(8)  # with running statistics
    grouped = nn.Conv2d(8, 8, (3, 2), groups=4, bias=False)
    layers = [nn.Conv2d(3, 8, 3), norm, nn.ReLU(), grouped, nn.GroupNorm(2, 8), nn.Tanh(), nn.Conv2d(8, 4, 1)]
    learner = interop.KernelModulation(
        nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)), lr=0.1, implicit=implicit
    )
    adapted = sum(p.numel() for p in learner.inner.parameters())
    assert adapted == 2 * (9**2 + 6**2 + 1) + 8 + 4 + 2 * 5 + (32 if implicit else 0)
    clone, images, labels = learner.clone(), torch.rand(4, 3, 9, 9), torch.tensor([0, 1, 0, 1])
    clone.adapt(F.cross_entropy(clone(images), labels))
    F.cross_entropy(clone(images), labels).backward()
    assert [name for name, p in learner.named_parameters() if p.grad is None] == []
    assert norm.running_mean.abs().max() > 0, "a clone shares the running statistics, as learn2learn's MAML does"


def dataset(classes=6, each=8, name="numbers"):
    """Class c's image number i is filled with 10 c + i."""
    values = np.arange(classes)[:, None] * 10 + np.arange(each)
    images = np.broadcast_to(values.reshape(-1, 1, 1, 1), (classes * each, 1, 2, 2)).astype(np.uint8)
    return metakm.FewShotDataset.from_arrays(images, np.repeat(np.arange(classes), each), name=name)


def taskset(l2l, data, ways=3, each=5, num_tasks=-1, extra=()):
    transforms = l2l.data.transforms
    steps = [transforms.NWays(data, ways), transforms.KShots(data, each), transforms.LoadData(data)]
    return l2l.data.Taskset(data, [*steps, transforms.RemapLabels(data), *extra], num_tasks=num_tasks)


def draw():
    """A number from each of the three global generators."""
    return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002


def values(images):
    return (images.double().mean((-1, -2, -3)) * 255).round().long()


def test_a_metakm_dataset_is_a_learn2learn_meta_dataset(l2l, interop):
    data = interop.meta_dataset(dataset())
    assert isinstance(data, l2l.data.MetaDataset)
    assert (len(data), data.labels) == (48, list(range(6)))
    assert data.labels_to_indices[2] == list(range(16, 24))
    image, label = data[17]
    assert (image.shape, image.dtype, label) == ((1, 2, 2), torch.float32, 2)
    assert values(image) == 21
    by_itself = l2l.data.MetaDataset(data.dataset)
    assert by_itself.labels_to_indices == data.labels_to_indices
    assert dict(by_itself.indices_to_labels) == dict(data.indices_to_labels)


def test_a_taskset_makes_episodes_of_different_images_of_the_right_classes(l2l, interop):
    sampler = interop.TasksetSampler(taskset(l2l, interop.meta_dataset(dataset())), shots=2, queries=3)
    episodes = sampler.batch(index=4, tasks=7)
    assert (sampler.ways, episodes.index) == (3, range(4, 11))
    assert episodes.support_images.shape == (7, 6, 1, 2, 2)
    assert episodes.query_images.shape == (7, 9, 1, 2, 2)
    assert episodes.support_images.dtype == torch.float32
    assert episodes.support_labels.tolist() == [[0, 0, 1, 1, 2, 2]] * 7
    assert episodes.query_labels.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2]] * 7
    support = values(episodes.support_images).view(7, 3, 2)
    query = values(episodes.query_images).view(7, 3, 3)
    together = torch.cat([support, query], dim=2)
    classes = together // 10
    assert (classes == classes[:, :, :1]).all()
    for task in together:
        assert len(set(task.flatten().tolist())) == 15
        assert len(set((task // 10).flatten().tolist())) == 3
    assert len({tuple(task.flatten().tolist()) for task in together}) == 7


@pytest.mark.parametrize("num_tasks", [-1, 4])
def test_an_episode_of_a_taskset_is_a_function_of_seed_and_index(l2l, interop, num_tasks):
    def noise(description):  # an augmentation that draws from all three global generators
        for each in description:
            each.transforms.append(lambda x: (x[0] + sum(draw()), x[1]))
        return description

    tasks = taskset(l2l, interop.meta_dataset(dataset()), num_tasks=num_tasks, extra=[noise])
    sampler = interop.TasksetSampler(tasks, shots=2, queries=3, seed=1)
    batch = sampler.batch(index=0, tasks=6)
    draw()
    tasks.sample()  # fills learn2learn's store of tasks
    again = interop.TasksetSampler(tasks, shots=2, queries=3, seed=1)
    for i in (5, 2):
        alone = again.batch(index=i, tasks=1)
        assert torch.equal(alone.support_images[0], batch.support_images[i])
        assert torch.equal(alone.query_images[0], batch.query_images[i])
    different = {tuple(task.flatten().tolist()) for task in batch.query_images}
    assert len(different) == (6 if num_tasks < 0 else 4)
    other = interop.TasksetSampler(tasks, shots=2, queries=3, seed=2).batch(index=0, tasks=6)
    assert not torch.equal(other.query_images, batch.query_images)


def test_drawing_an_episode_leaves_the_global_generators_as_they_were(l2l, interop):
    sampler = interop.TasksetSampler(taskset(l2l, interop.meta_dataset(dataset())), shots=2, queries=3)

    drawn = []
    for disturb in (lambda: None, lambda: sampler.batch(index=3, tasks=2)):
        random.seed(7)
        np.random.seed(7)  # noqa: NPY002
        torch.manual_seed(7)
        disturb()
        drawn.append(draw())
    assert drawn[0] == drawn[1]


def test_a_strategy_trains_and_is_evaluated_on_a_tasksets_episodes(l2l, interop):
    sampler = interop.TasksetSampler(
        taskset(l2l, interop.meta_dataset(metakm.load_dataset("glyphs", split="val"))), shots=1, queries=4
    )
    strategy = small_strategy("km", ways=3, size=28).float()
    episodes = sampler.batch(index=0, tasks=2)
    metakm.meta_loss(strategy, episodes, inner_lr=LR, inner_steps=2).loss.backward()
    assert all(p.grad is not None for p in strategy.parameters())
    options = {"tasks": 3, "inner_lr": LR, "inner_steps": 2, "device": torch.device("cpu")}
    found = accuracies(strategy, sampler, chunk=2, **options)
    assert found.shape == (3,)
    assert (found == accuracies(strategy, sampler, chunk=1, **options)).all()


@pytest.mark.float32
def test_tasksets_feed_the_same_trainer(l2l, interop, tmp_path):
    config = preset_config(
        algo="meta-sgd", ways=3, shots=2, queries=3, backbone="conv4-4-stride", meta_batch=2, iterations=2, val_every=2,
        val_tasks=2, eval_tasks=4, device="cpu", quiet=True, out=tmp_path,
    )  # fmt: skip
    glyphs = interop.meta_dataset(metakm.load_dataset("glyphs", split="val"))
    parts = [interop.TasksetSampler(taskset(l2l, glyphs), shots=2, queries=3, seed=seed) for seed in range(3)]
    with isolated():
        run = metakm.train(config, dataset=parts)
    assert run.learner.evaluate(parts[2], tasks=4).accuracy == run.accuracy


def test_uint8_images_become_unit_and_others_keep_their_values(l2l, interop):
    for dtype, largest in ((torch.uint8, 1.0), (torch.float64, 255.0)):
        images = torch.full((8, 1, 2, 2), 255, dtype=dtype)
        data = l2l.data.MetaDataset(torch.utils.data.TensorDataset(images, torch.arange(2).repeat(4)))
        steps = [l2l.data.transforms.KShots(data, 4), l2l.data.transforms.LoadData(data)]
        sampler = interop.TasksetSampler(l2l.data.Taskset(data, steps), shots=1, queries=3)
        assert sampler.batch(index=0, tasks=1).query_images.max() == largest


def fixed(task):
    """A stand-in for a Taskset that makes this task, to reach forms that learn2learn's own parts do not make."""
    return SimpleNamespace(num_tasks=-1, sample_task_description=lambda: None, get_task=lambda _: task)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (torch.zeros(4, 1, 2, 2), "add LoadData"),
        (("a", "b"), "str, str"),
        ((torch.zeros(4, 5), torch.tensor([0, 0, 1, 1])), r"images \[n, C, H, W\]"),
        ((torch.zeros(4, 1, 2, 2), torch.tensor([3, 3, 7, 7])), "RemapLabels"),
        ((torch.zeros(3, 1, 2, 2), torch.tensor([0, 0, 1])), "k=2"),
        ((torch.zeros(2, 1, 2, 2), torch.tensor([0, 0])), "2 classes or more"),
    ],
)
def test_tasks_of_another_form_are_named(interop, task, message):
    with pytest.raises(metakm.UserError, match=message):
        interop.TasksetSampler(fixed(task), shots=1, queries=1)


def test_randomness_out_of_reach_and_bad_numbers_are_named(l2l, interop):
    own = np.random.default_rng()
    task = fixed(None)
    task.get_task = lambda _: (torch.full((4, 1, 2, 2), own.random()), torch.tensor([0, 0, 1, 1]))
    with pytest.raises(metakm.UserError, match="two different tasks"):
        interop.TasksetSampler(task, shots=1, queries=1)
    good = taskset(l2l, interop.meta_dataset(dataset()))
    with pytest.raises(metakm.UserError, match="queries >= 1"):
        interop.TasksetSampler(good, shots=5, queries=0)
    sampler = interop.TasksetSampler(good, shots=2, queries=3)
    for index, tasks in ((-1, 1), (0, 0)):
        with pytest.raises(metakm.UserError, match="number episodes from 0"):
            sampler.batch(index=index, tasks=tasks)


def test_without_learn2learn_the_message_names_the_script_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    monkeypatch.delitem(sys.modules, "metakm.interop.learn2learn", raising=False)
    with pytest.raises(ImportError, match=r"benchmarks/install_peers\.sh"):
        importlib.import_module("metakm.interop.learn2learn")
    monkeypatch.delitem(sys.modules, "metakm.interop.learn2learn", raising=False)


def test_a_convolution_under_two_names_is_modulated_once_and_used_twice(interop):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.second = torch.nn.Conv2d(2, 2, 3, padding=1)
            self.fc = torch.nn.Linear(2, 3)

        def forward(self, x):
            return self.fc(self.second(self.first(x)).mean((2, 3)))

    torch.manual_seed(0)
    network, x = Net(), torch.rand(4, 2, 5, 5)
    learner = interop.KernelModulation(network, lr=LR, start="exact")
    assert learner.kernel_names == ("first.weight",)
    torch.testing.assert_close(learner.clone()(x), network(x), rtol=1e-12, atol=0)
    clone = learner.clone()
    clone.adapt(clone(x).square().sum())
    clone(x).square().sum().backward()
    assert isinstance(network.first.weight, torch.nn.Parameter)
    assert network.first.weight.grad.abs().sum() > 0


def test_a_later_task_of_another_form_is_named(interop):
    labels = [torch.tensor(each) for each in ([0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1, 2, 2])]
    drawn = iter((torch.zeros(len(each), 1, 2, 2), each) for each in labels)
    taskset = SimpleNamespace(num_tasks=-1, sample_task_description=lambda: None, get_task=lambda _: next(drawn))
    sampler = interop.TasksetSampler(taskset, shots=1, queries=1)
    with pytest.raises(metakm.UserError, match=r"as the first, got \(6, 1, 2, 2\)"):
        sampler.batch(index=0, tasks=1)

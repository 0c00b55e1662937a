"""easyfsl's TaskSampler as episodes, and a run of the same trainer on them."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

import metakm
from metakm.interop.easyfsl import TaskLoaderSampler
from metakm.presets import preset_config
from metakm.registry import isolated

samplers = pytest.importorskip("easyfsl.samplers", reason="easyfsl is not installed (pip install 'metakm[easyfsl]')")
pytestmark = pytest.mark.float32


class AnySource(Sampler):
    def __init__(self, data_source=None): ...


class TaskSampler(samplers.TaskSampler, AnySource):
    """That of the docs: easyfsl 1.5.0 passes `data_source` to torch's Sampler, which torch 2.14 does not take."""


class Numbers(Dataset):
    """Image number i of class c is filled with (10 c + i) / 255; classes have the names 3, 4, ..."""

    def __init__(self, classes=6, each=8, noise=None):
        self.pairs = [(c, i) for c in range(classes) for i in range(each)]
        self.noise = noise or (lambda: 0.0)

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, row):
        c, i = self.pairs[row]
        return torch.full((1, 28, 28), (10 * c + i) / 255) + self.noise(), c + 3

    def get_labels(self):
        return [c + 3 for c, _ in self.pairs]


def loader(ways=3, shots=2, queries=3, n_tasks=1, **options):
    data = Numbers(**options)
    sampler = TaskSampler(data, n_way=ways, n_shot=shots, n_query=queries, n_tasks=n_tasks)
    return DataLoader(data, batch_sampler=sampler, collate_fn=sampler.episodic_collate_fn)


def values(images):
    return (images.double().mean((-1, -2, -3)) * 255).round().long()


def test_episodes_are_of_different_images_of_the_right_classes():
    sampler = TaskLoaderSampler(loader())
    episodes = sampler.batch(index=4, tasks=7)
    assert (sampler.ways, sampler.shots, sampler.queries, episodes.index) == (3, 2, 3, range(4, 11))
    assert episodes.support_labels.tolist() == [[0, 0, 1, 1, 2, 2]] * 7
    assert episodes.query_labels.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2]] * 7
    together = torch.cat(
        [values(episodes.support_images).view(7, 3, 2), values(episodes.query_images).view(7, 3, 3)], dim=2
    )
    assert (together // 10 == together[:, :, :1] // 10).all(), "support and queries of a label are of one class"
    for task in together:
        assert len(set(task.flatten().tolist())) == 15
        assert len(set((task // 10).flatten().tolist())) == 3
    assert len({tuple(task.flatten().tolist()) for task in together}) == 7


def test_an_episode_is_a_function_of_seed_and_index():
    options = {"noise": lambda: random.random() + np.random.rand() + torch.rand(()).item()}  # noqa: NPY002
    batch = TaskLoaderSampler(loader(**options), seed=1).batch(index=0, tasks=6)
    torch.manual_seed(3)
    again = TaskLoaderSampler(loader(**options), seed=np.int64(1))
    for number in (5, 2):
        alone = again.batch(index=number, tasks=1)
        assert torch.equal(alone.support_images[0], batch.support_images[number])
        assert torch.equal(alone.query_images[0], batch.query_images[number])
    other = TaskLoaderSampler(loader(**options), seed=2).batch(index=0, tasks=6)
    assert not torch.equal(other.query_images, batch.query_images)


def test_drawing_an_episode_leaves_the_global_generators_as_they_were():
    sampler, drawn = TaskLoaderSampler(loader()), []
    for disturb in (lambda: None, lambda: sampler.batch(index=3, tasks=2)):
        random.seed(7)
        torch.manual_seed(7)
        disturb()
        drawn.append((random.random(), torch.rand(()).item()))
    assert drawn[0] == drawn[1]


def test_a_task_sampler_feeds_the_same_trainer(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    config = preset_config(
        algo="anil", ways=3, shots=2, queries=3, backbone="conv4-4-stride", meta_batch=2, iterations=3, val_every=3,
        val_tasks=2, eval_tasks=4, device="cpu", quiet=True, out=tmp_path,
    )  # fmt: skip
    parts = {name: TaskLoaderSampler(loader(), seed) for seed, name in enumerate(("train", "val", "test"))}
    with isolated():
        run = metakm.train(config, dataset=parts)
    assert run.learner.evaluate(parts["test"], tasks=4).accuracy == run.accuracy


def test_another_loader_and_other_tasks_are_named():
    with pytest.raises(metakm.UserError, match="TaskSampler, got one with BatchSampler"):
        TaskLoaderSampler(DataLoader(Numbers(), batch_size=3))
    without = loader()
    without.collate_fn = torch.utils.data.default_collate
    with pytest.raises(metakm.UserError, match="episodic_collate_fn"):
        TaskLoaderSampler(without)
    own = np.random.default_rng()
    with pytest.raises(metakm.UserError, match="two different ones from the same state"):
        TaskLoaderSampler(loader(noise=own.random))
    for index, tasks in ((-1, 1), (0, 0)):
        with pytest.raises(metakm.UserError, match="number episodes from 0"):
            TaskLoaderSampler(loader()).batch(index=index, tasks=tasks)


def test_tasks_in_another_form_are_named():
    odd = loader()
    good = odd.collate_fn

    def unequal(items):
        images, labels, *rest = good(items)
        return images, torch.zeros_like(labels), *rest

    odd.collate_fn = unequal
    with pytest.raises(metakm.UserError, match=r"2 of each of 3 labels, got \[6, 1, 28, 28\] and \[0, 0, 0, 0, 0, 0\]"):
        TaskLoaderSampler(odd)

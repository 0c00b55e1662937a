"""Several datasets in one run: which episode is whose, and what is refused."""

import numpy as np
import pytest
import torch

from metakm.data import AlternatingSampler, EpisodeSampler, FewShotDataset
from metakm.data.registry import dataset_entry
from metakm.errors import UserError
from metakm.run.command_line import parse


def dataset(name, classes, side=4):
    """Each image of class c has the value c, so that an episode shows its classes."""
    labels = np.repeat(np.arange(classes), 6)
    images = np.broadcast_to(labels[:, None, None, None].astype(np.uint8), (6 * classes, 3, side, side))
    return FewShotDataset.from_arrays(images, labels, name=name)


def samplers(seed=0):
    return [EpisodeSampler(dataset(name, n), 3, 1, 2, seed) for name, n in (("a", 5), ("b", 7))]


def test_episode_i_is_that_of_dataset_i_modulo_their_number_in_any_batch():
    first, second = samplers()
    joint = AlternatingSampler([first, second])
    batch = joint.batch(3, 4)
    assert batch.index == range(3, 7)
    for place, number in enumerate(batch.index):
        own = (first, second)[number % 2].batch(number, 1)
        assert torch.equal(batch.query_images[place], own.query_images[0])
        assert torch.equal(batch.support_images[place], own.support_images[0])
        assert torch.equal(batch.classes[place], own.classes[0] + 5 * (number % 2))
        assert torch.equal(joint.batch(number, 1).query_images[0], own.query_images[0])


def test_the_classes_are_numbered_over_all_datasets():
    joint = AlternatingSampler(samplers())
    assert joint.dataset.n_episode_classes == 12
    assert {*joint.batch(0, 40).classes.flatten().tolist()} == {*range(12)}


def test_the_hash_follows_the_episodes_and_the_data():
    joint = AlternatingSampler(samplers())
    assert joint.hash(0, 6) == AlternatingSampler(samplers()).hash(0, 6)
    others = [joint.hash(0, 5), joint.hash(1, 6), AlternatingSampler(samplers(1)).hash(0, 6)]
    assert joint.hash(0, 6) not in [*others, AlternatingSampler(samplers()[::-1]).hash(0, 6)]
    assert joint.dataset.split_hash != AlternatingSampler(samplers()[::-1]).dataset.split_hash


def test_images_of_different_shapes_are_refused():
    with pytest.raises(UserError, match=r"of one shape, got \[3, 4, 4\] of a and \[3, 8, 8\] of b"):
        AlternatingSampler([EpisodeSampler(dataset("a", 5), 3, 1, 2), EpisodeSampler(dataset("b", 5, side=8), 3, 1, 2)])


def test_samplers_of_different_sizes_and_none_are_refused():
    with pytest.raises(UserError, match=r"same \(ways, shots, queries\), got \[\(2, 1, 2\), \(3, 1, 2\)\]"):
        AlternatingSampler([samplers()[0], EpisodeSampler(dataset("c", 5), 2, 1, 2)])
    with pytest.raises(UserError, match="got none"):
        AlternatingSampler([])


def test_no_tasks_are_refused_as_by_one_sampler():
    for method in (AlternatingSampler.batch, AlternatingSampler.hash):
        with pytest.raises(UserError, match="tasks >= 1"):
            method(AlternatingSampler(samplers()), 0, 0)


def test_the_command_line_takes_several_names():
    config = parse(["--dataset", "mini-imagenet", "tiny-imagenet", "--algo", "protonet"])
    assert (config.dataset, config.ways) == ("mini-imagenet+tiny-imagenet", 5)
    assert parse(["--algo", "protonet", "--dataset", "omniglot"]).dataset == "omniglot"


def test_a_dataset_that_is_named_twice_or_unknown_is_refused():
    with pytest.raises(UserError, match="Expected each dataset once, got 'glyphs' 2 times"):
        dataset_entry("glyphs+glyphs")
    with pytest.raises(UserError, match=r"'glyph'.*glyphs"):
        dataset_entry("omniglot+glyph")

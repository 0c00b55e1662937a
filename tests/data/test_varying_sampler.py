"""Ways and shots out of ranges: a pure function of the seed and the batch."""

from collections import Counter

import pytest
import torch

from metakm.data import EpisodeSampler
from metakm.data.varying_sampler import VaryingSampler
from metakm.errors import UserError

RANGES = (range(2, 6), range(1, 4))


def test_a_batch_is_that_of_a_plain_sampler_of_its_ways_and_shots(make):
    dataset = make([9] * 7)
    sampler = VaryingSampler(dataset, *RANGES, queries=2, seed=3)
    for index in (0, 4, 8, 12):
        ways, shots = sampler.drawn(index)
        found = sampler.batch(index, 4)
        expected = EpisodeSampler(dataset, ways, shots, queries=2, seed=3).batch(index, 4)
        assert found.support_images.shape[:2] == (4, ways * shots)
        assert torch.equal(found.support_images, expected.support_images)
        assert torch.equal(found.query_labels, expected.query_labels)


def test_all_numbers_come_up_alike_and_depend_on_the_seed_and_the_index_alone(make):
    first, again, other = (VaryingSampler(make([9] * 7), *RANGES, 2, seed) for seed in (0, 0, 1))
    drawn = [first.drawn(index) for index in range(2400)]
    assert [again.drawn(index) for index in reversed(range(2400))] == drawn[::-1]
    assert [other.drawn(index) for index in range(50)] != drawn[:50]
    counts = Counter(drawn)
    assert len(counts) == 12
    assert 140 < min(counts.values()) <= max(counts.values()) < 260  # 200 each, standard deviation 14


def test_the_largest_must_fit_the_data(make):
    with pytest.raises(UserError, match="Expected at most 4 ways"):
        VaryingSampler(make([9] * 4), *RANGES, 2)
    with pytest.raises(UserError, match="got 3 \\+ 7"):
        VaryingSampler(make([9] * 7), *RANGES, 7)
    with pytest.raises(UserError, match="Expected index >= 0"):
        VaryingSampler(make([9] * 7), *RANGES, 2).batch(-1, 2)


def test_ways_and_shots_are_drawn_independently(make):
    """Of ranges of one length, too, where numbers drawn from one word would go together."""
    sampler = VaryingSampler(make([9] * 7), range(2, 5), range(1, 4), 2)
    counts = Counter(sampler.drawn(index) for index in range(900))
    assert len(counts) == 9
    assert 65 < min(counts.values()) <= max(counts.values()) < 140  # 100 each, standard deviation 9

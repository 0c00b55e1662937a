"""Pins of whole episodes: draws, pixels and labels. Every published result stands on them."""

import hashlib
from collections.abc import Iterable

import numpy as np
import pytest

from metakm.data import EpisodeSampler, FewShotDataset, load_dataset
from metakm.data import sampler as sampler_module

SETTINGS = [(5, 1, 1, 0), (5, 5, 15, 1), (20, 1, 1, 0), (20, 5, 15, 7), (2, 1, 3, 2**40), (3, 7, 2, 5)]  # N, K, Q, seed
SHAPES = {
    "omniglot": ([20] * 1100, 1, True),
    "glyphs": ([20] * 800, 1, True),
    "tiny-imagenet": ([550] * 64, 3, False),
    "uneven": ([20 + 7 * i % 31 for i in range(150)], 3, True),
}
"""Images per class of the train split, channels, rotations."""
PINS: dict[str, tuple[str, str]] = {
    "omniglot": ("e080d63e13475b13", "4bb66dd1b029b6ec"),
    "glyphs": ("000916ef4708c2b7", "222c18f7bdac8c0e"),
    "tiny-imagenet": ("e37c7bbe63296c07", "2a5a7504379907e3"),
    "uneven": ("d3a808875248d356", "252a2fce7a8d7e31"),
}
"""What was drawn, and the episodes, of 100 episodes of each setting."""
GLYPHS = ("ecd06a7a37d54a1a", "b80ed43dd5bdcc08")


def stand_in(name: str) -> FewShotDataset:
    """A dataset that draws as the train split of the named one, since the class sizes agree; its images are 5x5."""
    counts, channels, rotations = SHAPES[name]
    pixels = np.arange(sum(counts) * channels * 25, dtype=np.uint64) * np.uint64(2654435761) >> np.uint64(13)
    images = pixels.astype(np.uint8).reshape(-1, channels, 5, 5)
    return FewShotDataset.from_arrays(images, np.repeat(np.arange(len(counts)), counts), name=name, rotations=rotations)


def draws(sampler: EpisodeSampler) -> Iterable[np.ndarray]:
    return sampler.draw(3, 100)


def contents(sampler: EpisodeSampler) -> Iterable[np.ndarray]:
    batch = sampler.batch(3, 100)
    tensors = (batch.support_images, batch.support_labels, batch.query_images, batch.query_labels)
    return (tensor.numpy() for tensor in tensors)


def digest(arrays: Iterable[np.ndarray]) -> str:
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()[:16]


def pins(dataset: FewShotDataset) -> tuple[str, str]:
    samplers = [EpisodeSampler(dataset, *setting) for setting in SETTINGS]
    return (
        digest(array for sampler in samplers for array in draws(sampler)),
        digest(array for sampler in samplers for array in contents(sampler)),
    )


@pytest.mark.parametrize("name", SHAPES)
def test_draws_and_episodes_are_pinned(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pins(stand_in(name)) == PINS[name]
    monkeypatch.setattr(sampler_module, "ROTATED_BYTES", 0)  # as if the images were too large to be kept turned
    assert pins(stand_in(name)) == PINS[name]


def test_episodes_of_the_glyphs_are_pinned() -> None:
    assert pins(load_dataset("glyphs", "val", root="/nowhere")) == GLYPHS

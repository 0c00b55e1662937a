import hashlib

import numpy as np
import pytest

from metakm.data import EpisodeSampler, glyphs, load_dataset


def test_the_splits_are_800_100_200_by_twenty_drawers() -> None:
    assert glyphs.SIZES == {"train": 800, "val": 100, "test": 200}
    val = load_dataset("glyphs", "val", root="/nowhere")
    assert val.images.shape == (2000, 1, 28, 28)
    assert (val.counts == 20).all()
    assert val.rotations
    assert val.class_names[0] == "glyph0800"
    assert val.split_hash == "0af57644b8926119"
    assert np.array_equal(val.images[20:40], glyphs.draw_character(801))


def test_the_drawings_are_equal_bit_for_bit_everywhere() -> None:
    some = np.stack([glyphs.draw_character(n) for n in (0, 1, 2, 500, 899, 900, 1099)])
    assert hashlib.sha256(some.tobytes()).hexdigest()[:16] == "95a412275c942639"


def test_every_image_has_ink_on_an_empty_ground() -> None:
    some = np.stack([glyphs.draw_character(n)[:, 0] for n in range(60)])  # [60, 20, 28, 28]
    share = (some > 127).mean(axis=(2, 3))
    assert share.min() > 0.005
    assert share.max() < 0.5
    assert np.median(some) == 0
    assert some.max() == 255


@pytest.fixture(scope="module")
def nearest() -> float:
    """Accuracy of the nearest support image by cosine in 20-way 1-shot episodes."""
    images = np.concatenate([glyphs.draw_character(n) for n in range(900, 960)])
    dataset = glyphs.FewShotDataset.from_arrays(images, np.repeat(np.arange(60), 20), rotations=True)
    batch = EpisodeSampler(dataset, 20, 1, 5).batch(0, 100)
    support, query = batch.support_images.flatten(2), batch.query_images.flatten(2)
    cosine = query @ (support / support.norm(dim=-1, keepdim=True)).mT  # [T, N*Q, N]
    return (cosine.argmax(-1) == batch.query_labels).float().mean().item()


def test_glyphs_are_about_as_hard_as_omniglot(nearest: float) -> None:
    """By the same measure real Omniglot (test split, rotated) has 0.33; guessing has 0.05."""
    assert 0.22 < nearest < 0.42

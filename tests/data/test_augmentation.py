import numpy as np
import pytest
import torch

from metakm.data import Episodes, EpisodeSampler, FewShotDataset
from metakm.data.augmentation import pad_crop_flip
from metakm.errors import UserError

SIDE = 20  # so shifts of up to 2 pixels


@pytest.fixture
def photographs() -> FewShotDataset:
    images = np.random.default_rng(0).integers(0, 256, (60, 3, SIDE, SIDE), dtype=np.uint8)
    return FewShotDataset.from_arrays(images, np.arange(60) // 10)


def oracle(image: np.ndarray) -> dict[bytes, tuple[int, int, bool]]:
    """All that may come of an image `[C, H, W]`, by numpy's own padding: shift down, shift across, mirrored."""
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode="reflect")
    found = {}
    for down in range(5):
        for across in range(5):
            window = padded[:, down : down + SIDE, across : across + SIDE]
            found[window.tobytes()] = (down - 2, across - 2, False)
            found[window[..., ::-1].tobytes()] = (down - 2, across - 2, True)
    return found


def test_every_shift_and_mirroring_comes_and_nothing_else(photographs: FewShotDataset) -> None:
    image = photographs.images[0]
    words = np.random.default_rng(1).integers(0, 2**64, (4, 500), dtype=np.uint64)
    made = pad_crop_flip(np.broadcast_to(image, (4, 500, 3, SIDE, SIDE)), words)
    known = oracle(image)
    found = [known[one.tobytes()] for one in made.reshape(-1, 3, SIDE, SIDE)]
    assert set(found) == set(known.values())
    counts = np.array([found.count(way) for way in known.values()])  # 40 each are expected
    assert ((counts - 40) ** 2 / 40).sum() < 86  # chi squared with 49 degrees of freedom, p = 0.001


def sampler(dataset: FewShotDataset, augment: bool = True, **changes: int) -> EpisodeSampler:
    numbers = {"ways": 4, "shots": 2, "queries": 3, "seed": 7}
    return EpisodeSampler(dataset, **{**numbers, **changes}, augment=augment)


def tensors(batch: Episodes) -> list[torch.Tensor]:
    return [batch.support_images, batch.support_labels, batch.query_images, batch.query_labels]


def same(a: Episodes, b: Episodes) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


def test_the_same_images_are_drawn_and_each_is_changed_for_itself(photographs: FewShotDataset) -> None:
    plain, changed = (sampler(photographs, augment).batch(3, 20) for augment in (False, True))
    ways = {"support": set(), "query": set()}
    for role in ways:
        before, after = (getattr(batch, f"{role}_images").flatten(0, 1) for batch in (plain, changed))
        for one, other in zip(before, after, strict=True):
            known = oracle((one * 255).round().to(torch.uint8).numpy())
            ways[role].add(known[(other * 255).round().to(torch.uint8).numpy().tobytes()])
    assert all(len(found) > 40 for found in ways.values())
    assert sampler(photographs).hash(3, 20) == sampler(photographs, False).hash(3, 20)


def test_an_episode_depends_on_its_number_and_seed_alone(photographs: FewShotDataset) -> None:
    whole = sampler(photographs).batch(0, 9)
    assert same(whole[4:7], sampler(photographs).batch(4, 3))  # as a resumed run would draw them
    assert not same(whole[0:1], sampler(photographs, seed=8).batch(0, 1))
    assert len({one.numpy().tobytes() for one in whole.support_images}) == 9


def test_an_episode_is_drawn_anew_each_time_it_comes(photographs: FewShotDataset) -> None:
    one_class = FewShotDataset.from_arrays(photographs.images[[0, 0, 10, 10]], [0, 0, 1, 1])
    batch = EpisodeSampler(one_class, 2, 1, 1, augment=True).batch(0, 40)
    assert len({image.numpy().tobytes() for image in batch.support_images.flatten(0, 1)}) > 40  # of two images
    assert not torch.equal(batch.support_images, batch.query_images)


def test_ways_and_queries_do_not_change_the_first_images(photographs: FewShotDataset) -> None:
    base = sampler(photographs).batch(0, 6)
    assert torch.equal(base.support_images, sampler(photographs, queries=5).batch(0, 6).support_images)
    fewer = sampler(photographs, ways=2).batch(0, 6)
    assert torch.equal(base.support_images[:, :4], fewer.support_images)
    assert torch.equal(base.query_images[:, :6], fewer.query_images)


def test_the_stream_is_pinned(photographs: FewShotDataset) -> None:
    """If this fails, no augmented run can be repeated any more."""
    words = sampler(photographs)._augmentation(5, 1)
    assert words.shape == (1, 4, 5)
    assert words[0, 0, :2].tolist() == [14169387616005619690, 1475000022415445766]


@pytest.mark.parametrize("split", ["val", "test"])
def test_only_meta_training_is_augmented(photographs: FewShotDataset, split: str) -> None:
    images = FewShotDataset.from_arrays(photographs.images, np.arange(60) // 10, split=split)
    with pytest.raises(UserError, match=f"Expected the train split to augment, got custom {split}"):
        sampler(images)


def test_characters_are_not_augmented(photographs: FewShotDataset) -> None:
    images = FewShotDataset.from_arrays(photographs.images, np.arange(60) // 10, name="letters", rotations=True)
    with pytest.raises(UserError, match=r"Expected photographs with --augment, got letters train.*leave it out"):
        sampler(images)

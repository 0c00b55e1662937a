import dataclasses
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from metakm.data import Episodes, EpisodeSampler, FewShotDataset
from metakm.data import sampler as sampler_module
from metakm.errors import UserError

Make = Callable[..., FewShotDataset]
UNEVEN = [4, 9, 5, 7, 30, 6, 12]


def same(a: Episodes, b: Episodes) -> bool:
    pairs = [
        (a.support_images, b.support_images),
        (a.support_labels, b.support_labels),
        (a.query_images, b.query_images),
        (a.query_labels, b.query_labels),
    ]
    return a.index == b.index and all(torch.equal(x, y) for x, y in pairs)


def rows_of(images: torch.Tensor) -> np.ndarray:
    """Read the row numbers back from unrotated images `[T, n, 1, 4, 4]` of the `make` fixture."""
    bits = images.flatten(2)[:, :, :12].numpy().astype(int)  # [T, n, 12]
    return bits @ (1 << np.arange(12))


def test_shapes_types_and_range(make: Make) -> None:
    batch = EpisodeSampler(make(UNEVEN), ways=3, shots=1, queries=2).batch(index=4, tasks=5)
    assert batch.support_images.shape == (5, 3, 1, 4, 4)
    assert batch.query_images.shape == (5, 6, 1, 4, 4)
    assert batch.support_images.dtype == batch.query_images.dtype == torch.float32
    assert batch.support_images.is_contiguous()
    assert batch.query_images.is_contiguous()
    assert set(batch.query_images.unique().tolist()) == {0.0, 1.0}
    assert batch.index == range(4, 9)
    assert len(batch) == 5


def test_labels_are_class_major_and_images_belong_to_them(make: Make) -> None:
    dataset = make(UNEVEN)
    sampler = EpisodeSampler(dataset, ways=3, shots=2, queries=2)
    batch = sampler.batch(0, 50)
    assert batch.support_labels[7].tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.query_labels[7].tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.support_labels.dtype == torch.int64
    drawn = sampler.draw(0, 50).classes  # [T, N]
    for images, labels in [
        (batch.support_images, batch.support_labels),
        (batch.query_images, batch.query_labels),
    ]:
        classes = np.searchsorted(dataset.offsets, rows_of(images), side="right") - 1
        assert np.array_equal(classes, np.take_along_axis(drawn, labels.numpy(), axis=1))
        assert np.array_equal(classes, batch.classes.gather(1, labels).numpy())
    assert (batch.classes.dtype, dataset.n_episode_classes) == (torch.int64, 7)


def test_a_class_in_each_rotation_has_a_number_of_its_own(make: Make) -> None:
    dataset = make(UNEVEN, rotations=True)
    sampler = EpisodeSampler(dataset, ways=5, shots=1, queries=2)
    batch, drawn = sampler.batch(3, 400), sampler.draw(3, 400)
    turned = [*zip(drawn.classes.ravel().tolist(), drawn.rotations.ravel().tolist(), strict=True)]
    numbers = batch.classes.ravel().tolist()
    assert len({*turned}) == len({*zip(turned, numbers, strict=True)}) == 28
    assert sorted({*numbers}) == list(range(28)) == list(range(dataset.n_episode_classes))


def test_class_numbers_go_with_their_tasks(make: Make) -> None:
    batch = EpisodeSampler(make(UNEVEN), ways=3, shots=1, queries=2).batch(0, 6)
    assert torch.equal(batch[2:5].classes, batch.classes[2:5])
    assert torch.equal(batch[1].to("cpu", torch.float64).classes, batch.classes[1:2])
    assert dataclasses.replace(batch, classes=None)[1:3].to("cpu").classes is None


def test_classes_of_a_task_differ_and_no_image_comes_twice(make: Make) -> None:
    batch = EpisodeSampler(make(UNEVEN), ways=7, shots=1, queries=3).batch(0, 200)  # the whole smallest class
    rows = np.concatenate([rows_of(batch.support_images), rows_of(batch.query_images)], axis=1)
    assert all(len(set(task)) == 28 for task in rows.tolist())


def test_an_episode_does_not_depend_on_its_batch(make: Make) -> None:
    sampler = EpisodeSampler(make(UNEVEN, rotations=True), ways=5, shots=1, queries=3, seed=3)
    batch = sampler.batch(0, 8)
    assert same(batch[5], sampler.batch(5, 1))
    assert same(batch[2:7], sampler.batch(2, 5))


def test_an_episode_does_not_depend_on_earlier_draws_or_global_state(make: Make) -> None:
    dataset = make(UNEVEN, rotations=True)
    first = EpisodeSampler(dataset, 5, 1, 3, seed=3).batch(5, 2)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    random.seed(1)
    state = torch.get_rng_state()
    other = EpisodeSampler(dataset, 5, 1, 3, seed=3)
    other.batch(1000, 3)
    assert same(other.batch(5, 2), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_stream_is_pinned(make: Make) -> None:
    """If this fails, every published episode has changed."""
    sampler = EpisodeSampler(make(UNEVEN, rotations=True, name="golden", split="test"), 4, 1, 2, seed=5)
    drawn = sampler.draw(7, 1)
    assert drawn.classes.tolist() == [[0, 2, 6, 3]]
    assert drawn.rows.tolist() == [[[2, 0, 3], [16, 14, 15], [68, 66, 61], [21, 24, 22]]]
    assert drawn.rotations.tolist() == [[3, 0, 2, 2]]
    assert sampler.hash(7, 1) == "21332695277b0938"


def test_episodes_of_different_numbers_differ(make: Make) -> None:
    sampler = EpisodeSampler(make(UNEVEN), 5, 1, 2)
    numbers = [*range(300), 2**32, 2**40, 2**63, 2**64 - 1]
    assert len({sampler.draw(number, 1).rows.tobytes() for number in numbers}) == len(numbers)


def test_more_queries_keep_the_support_set_and_the_earlier_queries(make: Make) -> None:
    dataset = make([20] * 6, rotations=True)
    few, many = (EpisodeSampler(dataset, 4, 3, queries).batch(0, 10) for queries in (2, 9))
    assert torch.equal(few.support_images, many.support_images)
    assert torch.equal(few.query_images.unflatten(1, (4, 2)), many.query_images.unflatten(1, (4, 9))[:, :, :2])


def test_more_ways_keep_the_first_classes(make: Make) -> None:
    dataset = make(UNEVEN, rotations=True)
    few, many = (EpisodeSampler(dataset, ways, 1, 2).batch(0, 10) for ways in (2, 5))
    assert torch.equal(few.query_images, many.query_images[:, :4])


def test_seed_split_and_name_change_the_episodes(make: Make) -> None:
    named = [("a", "train", 0), ("a", "train", 1), ("a", "test", 0), ("b", "train", 0)]
    drawn = [
        EpisodeSampler(make(UNEVEN, name=name, split=split), 5, 1, 1, seed).draw(0, 4) for name, split, seed in named
    ]
    assert len({d.rows.tobytes() for d in drawn}) == 4
    assert EpisodeSampler(make(UNEVEN), 5, 1, 1, seed=np.int64(1)).hash(0, 2) == (
        EpisodeSampler(make(UNEVEN), 5, 1, 1, seed=1).hash(0, 2)
    )


def test_rotation_is_shared_by_support_and_query_and_goes_counter_clockwise(make: Make) -> None:
    dataset = make(UNEVEN, rotations=True)
    sampler = EpisodeSampler(dataset, 4, 2, 2)
    batch, drawn = sampler.batch(0, 40), sampler.draw(0, 40)
    assert set(drawn.rotations.ravel().tolist()) == {0, 1, 2, 3}
    for task in range(40):
        for way in range(4):
            turned = np.rot90(dataset.images[drawn.rows[task, way]], drawn.rotations[task, way], axes=(-2, -1))
            expected = torch.tensor(turned.copy()).float() / 255  # [K+Q, 1, 4, 4]
            mine = slice(2 * way, 2 * way + 2)
            assert torch.equal(batch.support_images[task, mine], expected[:2])
            assert torch.equal(batch.query_images[task, mine], expected[2:])


def test_without_rotations_nothing_is_turned_and_the_draw_is_the_same(make: Make) -> None:
    plain, turned = (EpisodeSampler(make(UNEVEN, rotations=r), 4, 1, 1).draw(0, 20) for r in (False, True))
    assert not plain.rotations.any()
    assert turned.rotations.any()
    assert np.array_equal(plain.rows, turned.rows)


def test_every_pixel_value_becomes_the_nearest_float_of_its_255th() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(4, 1, 8, 8)
    batch = EpisodeSampler(FewShotDataset.from_arrays(images, [0, 0, 1, 1]), 2, 1, 1).batch(0, 1)
    found = torch.cat([batch.support_images, batch.query_images]).flatten().sort().values
    assert found.tolist() == [float(np.float32(value / 255)) for value in range(256)]


def test_rotated_images_are_kept_only_if_asked_for_and_not_too_large(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keeps(rotations: bool, ask: str) -> bool:
        dataset = make(UNEVEN, rotations=rotations)
        getattr(EpisodeSampler(dataset, 3, 1, 1), ask)(0, 4)
        return "rotated" in vars(dataset)

    assert keeps(True, "batch")
    assert not keeps(False, "batch")
    assert not keeps(True, "draw")
    assert not keeps(True, "hash")
    monkeypatch.setattr(sampler_module, "ROTATED_BYTES", sum(UNEVEN) * 16)
    assert keeps(True, "batch")
    monkeypatch.setattr(sampler_module, "ROTATED_BYTES", sum(UNEVEN) * 16 - 1)
    assert not keeps(True, "batch")


def test_classes_images_and_turns_are_drawn_evenly(make: Make) -> None:
    """Chi-squared of each, against its 99.99 % point; the draw is fixed, so this cannot flicker."""
    tasks, counts = 6000, np.array([5, 8, 8, 20, 8, 8, 8, 8, 8, 8])
    drawn = EpisodeSampler(make(counts.tolist(), rotations=True), 5, 1, 2).draw(0, tasks)
    classes = np.bincount(drawn.classes.ravel(), minlength=10)
    assert _chi2(classes, np.full(10, tasks / 2)) < 33.7  # 9 degrees of freedom
    assert _chi2(np.bincount(drawn.rotations.ravel(), minlength=4), np.full(4, tasks * 5 / 4)) < 21.1  # 3
    rows = np.bincount(drawn.rows.ravel(), minlength=counts.sum())
    assert _chi2(rows, np.repeat(classes * 3 / counts, counts)) < 142.0  # 79
    first = np.bincount(drawn.classes[:, 0], minlength=10)
    assert _chi2(first, np.full(10, tasks / 10)) < 33.7


def _chi2(seen: np.ndarray, expected: np.ndarray) -> float:
    return float(((seen - expected) ** 2 / expected).sum())


def test_the_hash_covers_settings_seed_split_and_tasks(make: Make) -> None:
    base = {"ways": 3, "shots": 1, "queries": 1, "seed": 0}
    changes: list[dict[str, int]] = [{}, {"ways": 4}, {"shots": 2}, {"queries": 2}, {"seed": 1}]
    hashes = [EpisodeSampler(make(UNEVEN), **{**base, **change}).hash(0, 5) for change in changes]
    sampler = EpisodeSampler(make(UNEVEN), **base)
    hashes += [sampler.hash(1, 5), sampler.hash(0, 6)]
    hashes += [EpisodeSampler(make(UNEVEN, split="test"), **base).hash(0, 5)]
    hashes += [EpisodeSampler(make([*UNEVEN, 9]), **base).hash(0, 5)]
    hashes += [EpisodeSampler(make(UNEVEN, rotations=True), **base).hash(0, 5)]
    assert len(set(hashes)) == len(hashes)
    assert sampler.hash(0, 5) == hashes[0]
    assert len(hashes[0]) == 16


def test_the_hash_does_not_depend_on_how_many_episodes_are_drawn_at_a_time(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many episodes of a large dataset would not fit into memory at once."""
    sampler = EpisodeSampler(make(UNEVEN, rotations=True), ways=3, shots=1, queries=1)
    whole, drawn, draw = sampler.hash(1, 7), [], EpisodeSampler.draw
    monkeypatch.setattr("metakm.data.sampler._HASHED_WORDS", 3 * sampler._words)
    monkeypatch.setattr(EpisodeSampler, "draw", lambda self, i, n: drawn.append((i, n)) or draw(self, i, n))
    assert sampler.hash(1, 7) == whole
    assert drawn == [(1, 3), (4, 3), (7, 1)]
    for index, tasks in ((-1, 2), (0, 0), (2**64 - 1, 2)):
        with pytest.raises(UserError, match=r"Expected index >= 0 and tasks >= 1|below 2\*\*64, got index"):
            sampler.hash(index, tasks)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ways": 0}, "ways >= 1, got 0"),
        ({"shots": 0}, "shots >= 1, got 0"),
        ({"queries": -1}, "queries >= 1, got -1"),
        ({"ways": 8}, r"at most 7 ways \(the classes of custom train\), got 8"),
        ({"shots": 3, "queries": 2}, r"shots \+ queries <= 4 .*, got 3 \+ 2"),
    ],
)
def test_impossible_settings_are_refused(make: Make, change: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        EpisodeSampler(make(UNEVEN), **{"ways": 3, "shots": 1, "queries": 1, **change})


@pytest.mark.parametrize(("index", "tasks"), [(0, 0), (-1, 1), (0, -2), (2**64 - 1, 2)])
def test_impossible_episode_numbers_are_refused(make: Make, index: int, tasks: int) -> None:
    sampler = EpisodeSampler(make(UNEVEN), 3, 1, 1)
    for ask in (sampler.batch, sampler.draw, sampler.hash):
        with pytest.raises(UserError, match=f"got index {index} and tasks {tasks}"):
            ask(index, tasks)
    assert len(sampler.batch(2**64 - 1, 1)) == 1


def test_slices_and_chunks_are_parts_of_the_batch(make: Make) -> None:
    batch = EpisodeSampler(make(UNEVEN), 3, 1, 2).batch(10, 7)
    assert [chunk.index for chunk in batch.chunks(3)] == [range(10, 13), range(13, 16), range(16, 17)]
    assert torch.equal(torch.cat([chunk.query_images for chunk in batch.chunks(3)]), batch.query_images)
    assert same(batch[-1], batch[6:7])
    assert batch[1].support_labels.shape == (1, 3)
    assert [one.index[0] for one in batch] == list(range(10, 17))
    with pytest.raises(IndexError):
        batch[7]
    with pytest.raises(UserError, match="at least 1 task, got 0"):
        batch.chunks(0)


def test_to_moves_every_tensor(make: Make) -> None:
    moved = EpisodeSampler(make(UNEVEN), 3, 1, 2).batch(0, 2).to("meta")
    tensors = [moved.support_images, moved.support_labels, moved.query_images, moved.query_labels]
    assert {t.device.type for t in tensors} == {"meta"}
    assert moved.index == range(2)


@pytest.mark.parametrize("rotations", [False, True])
def test_a_pickled_sampler_has_its_images_once_and_draws_the_same(rotations: bool, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 32, 32), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    data = FewShotDataset.from_arrays(images, np.arange(40) // 8, rotations=rotations)
    data = dataclasses.replace(data, images=np.load(tmp_path / "images.npy", mmap_mode="r"))  # as the cache gives them
    sampler = EpisodeSampler(data, ways=3, shots=1, queries=2)
    expected = sampler.batch(0, 3)  # from here on it keeps the images turned
    for sent in (sampler, data):
        assert len(pickle.dumps(sent)) < 1.1 * images.nbytes
    assert same(pickle.loads(pickle.dumps(sampler)).batch(0, 3), expected)


def test_numbers_may_be_numpys(make):
    plain, numpys = (EpisodeSampler(make([4] * 5), *map(kind, (3, 1, 2))) for kind in (int, np.int64))
    assert plain.hash(0, 3) == numpys.hash(0, 3)

import math

import numpy as np
import pytest

from metakm.data.rng import k_smallest, raw_words, stream_key


def test_the_words_are_those_of_philox_4x64_10() -> None:
    """First known-answer vector of Random123 (kat_vectors): counter 0, key 0. numpy counts up before it draws."""
    bits = np.random.Philox(key=0, counter=2**256 - 1)
    assert [hex(w) for w in bits.random_raw(4)] == [
        "0x16554d9eca36314c",
        "0xdb20fe9d672d0fdc",
        "0xd7e772cee186176b",
        "0x7e68b68aec7ba23b",
    ]


def test_a_stream_is_pinned() -> None:
    assert hex(stream_key("metakm", 1)) == "0x298cc88bcaefabf396e96933ba86888c"
    assert [hex(w) for w in raw_words(stream_key("metakm", 1), [5], 2)[0]] == [
        "0xace3282cfda45c6e",
        "0xddf9357130a91970",
    ]


def test_streams_and_keys_differ_and_longer_draws_only_add() -> None:
    one, *others = raw_words(7, [0, 1, 2**64 - 1], 64)
    assert np.array_equal(raw_words(7, [0], 1000)[0, :64], one)
    others.extend(raw_words(8, [0], 64))
    assert all(not np.isin(one, other).any() for other in others)


def test_keys_do_not_confuse_numbers_with_names() -> None:
    assert len({stream_key("a", 1), stream_key("a", "1"), stream_key("a1"), stream_key("a", 1, 0)}) == 4


def test_smallest_gives_positions_in_order_of_their_keys() -> None:
    keys = np.array([[5, 3, 9, 1], [2, 8, 4, 6]], np.uint64)
    assert k_smallest(keys, 3).tolist() == [[3, 1, 0], [0, 2, 3]]
    assert k_smallest(keys, 4)[:, :2].tolist() == k_smallest(keys, 2).tolist()


@pytest.mark.parametrize("shape", [(1, 1), (16, 64), (3, 4, 20), (2, 1100)])
@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_smallest_is_the_head_of_a_full_sort(shape: tuple[int, ...], share: float) -> None:
    words = raw_words(3, [0], math.prod(shape) * 2)[0].reshape(*shape[:-1], -1)
    keys = words[..., : shape[-1]]  # not contiguous, as the sampler's
    count = max(1, int(share * shape[-1]))
    expected = [sorted(range(shape[-1]), key=row.__getitem__)[:count] for row in keys.reshape(-1, shape[-1])]
    found = k_smallest(keys, count)
    assert found.dtype == np.int64
    assert np.array_equal(found, np.reshape(expected, (*shape[:-1], count)))


def test_smallest_compares_all_bits_and_leaves_the_keys_alone() -> None:
    top = np.uint64(2**64 - 1)
    keys = np.array([[top, 2**63 + 1, 2**63, 1, top], [0, top, 2**64 - 2, top, 5]], np.uint64)
    before = keys.copy()
    assert k_smallest(keys, 3).tolist() == [[3, 2, 1], [0, 4, 2]]  # the excluded come twice
    assert np.array_equal(keys, before)

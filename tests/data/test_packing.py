"""Packing: nothing lost, no bound broken, as full as best-fit decreasing written the slow way."""

import numpy as np
import pytest

from optiml_jax.data.packing import pack


def lognormal(rng, n, row_length):
    """Lengths like those of instruction data: mean about 296, a long tail."""
    return np.clip(np.exp(rng.normal(np.log(296) - 0.32, 0.8, n)), 1, row_length).astype(np.int64)


def slow_best_fit_decreasing(lengths, row_length):
    """Free tokens of each row, by looking at every row for every example."""
    free = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, space in enumerate(free) if space >= length]
        if fitting:
            free[min(fitting, key=free.__getitem__)] -= length
        else:
            free.append(row_length - length)
    return free


@pytest.mark.parametrize("seed", range(40))
def test_every_example_is_in_one_row_and_no_bound_is_broken(seed):
    rng = np.random.default_rng(seed)
    row_length = int(rng.integers(1, 300))
    lengths = rng.integers(0, rng.integers(1, row_length + 1) + 1, rng.integers(0, 400))
    max_segments = [None, 1, 2, 5, 64][seed % 5]
    rows = pack(lengths, row_length, max_segments=max_segments)
    assert sorted(i for row in rows for i in row.tolist()) == list(range(len(lengths)))
    assert all(row.dtype.kind == "i" and len(row) for row in rows)
    assert all(lengths[row].sum() <= row_length for row in rows)
    assert max_segments is None or all(len(row) <= max_segments for row in rows)


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_as_full_as_those_of_the_slow_search(seed):
    rng = np.random.default_rng(seed)
    row_length = int(rng.integers(5, 200))
    lengths = rng.integers(1, row_length + 1, 300) if seed % 2 else np.minimum(rng.geometric(0.05, 300), row_length)
    free = [row_length - int(lengths[row].sum()) for row in pack(lengths, row_length)]
    assert sorted(free) == sorted(slow_best_fit_decreasing(lengths.tolist(), row_length))


@pytest.mark.parametrize(
    ("row_length", "max_segments", "least"), [(2048, None, 0.998), (2048, 64, 0.998), (512, None, 0.998)]
)
def test_a_block_of_realistic_lengths_fills_its_rows(row_length, max_segments, least):
    lengths = lognormal(np.random.default_rng(0), 16_384, row_length)
    rows = pack(lengths, row_length, max_segments=max_segments)
    assert lengths.sum() / (len(rows) * row_length) >= least


def test_many_one_word_documents_respect_the_bound():
    rows = pack(np.full(1000, 3), 2048, max_segments=64)
    assert sorted(len(row) for row in rows) == [1000 - 15 * 64] + [64] * 15


def test_the_same_lengths_give_the_same_rows():
    lengths = lognormal(np.random.default_rng(1), 2000, 1024)
    first, second = pack(lengths, 1024, max_segments=7), pack(lengths.tolist(), 1024, max_segments=7)
    assert [row.tolist() for row in first] == [row.tolist() for row in second]


def test_unsigned_lengths_are_sorted_as_numbers():
    assert [row.tolist() for row in pack(np.array([1, 9, 4], np.uint32), 10)] == [[1, 0], [2]]


def test_nothing_packs_into_no_rows():
    assert pack([], 10) == [] and pack(np.array([], np.int64), 10) == []


def test_what_cannot_be_packed_is_named():
    with pytest.raises(ValueError, match=r"example 2 .*11.* 0 to 10"):
        pack([3, 10, 11, 12], 10)
    with pytest.raises(ValueError, match=r"example 0 has length -1"):
        pack([-1], 10)
    with pytest.raises(ValueError, match="max_segments is 0"):
        pack([3], 10, max_segments=0)
    with pytest.raises(ValueError, match="integers in one dimension"):
        pack([3.5], 10)

"""Keyed randomness: pure functions of (seed, purpose, ...), whatever the NumPy version, host count and task order.

NumPy's generators may change their streams between releases, so that a resumed run could see other data; hashes do not.
"""

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SMALL = 64  # below, ranks of hashed keys: exactly uniform, which a Feistel network of so few states is not
_ROUNDS = 8


def key(*parts: str | int) -> np.uint64:
    """64 random-looking bits that depend on every part and its place, e.g. `key(seed, "rows", block)`."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def hashed(keys: np.ndarray | np.uint64, counters: np.ndarray) -> np.ndarray:
    """Outputs number `counters` of the splitmix64 streams (Steele et al. 2014) that start at `keys`: uint64."""
    z = keys + (counters.astype(np.uint64) + np.uint64(1)) * _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def shuffled(n: int, key: np.uint64) -> np.ndarray:
    """A permutation of 0..n-1: int64 [n]."""
    return np.argsort(hashed(key, np.arange(n)), kind="stable")


def permuted(places: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Where each place goes under the permutation of 0..size-1 that its key names; no permutation is ever stored.

    Args:
      places: integers [n], 0 <= place < size.
      sizes: integers [n], below 2**32; equal keys have equal sizes.
      keys: uint64 [n].

    Returns:
      int64 [n].
    """
    result = np.empty(len(places), np.int64)
    small = sizes < _SMALL
    result[small] = _ranked(places[small], sizes[small], keys[small])
    result[~small] = _feistel(places[~small], sizes[~small], keys[~small])
    return result


def _ranked(places: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    groups, first, group = np.unique(keys, return_index=True, return_inverse=True)
    columns = np.arange(_SMALL)
    ranks = hashed(groups[:, None], columns[None])
    ranks[columns >= sizes[first][:, None]] = np.iinfo(np.uint64).max  # beyond the size: sorted to the end
    return np.argsort(ranks, axis=1, kind="stable")[group, places]


def _feistel(places: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Black and Rogaway 2002: a Feistel network over pairs of digits below ceil(sqrt(size)), repeated while outside."""
    result = np.array(places, np.uint64)
    outside = np.arange(len(result))
    while len(outside):
        key, base = keys[outside], np.ceil(np.sqrt(sizes[outside])).astype(np.uint64)
        left, right = np.divmod(result[outside], base)
        for number in range(_ROUNDS):
            noise = hashed(key, right * np.uint64(_ROUNDS) + np.uint64(number)) >> np.uint64(32)
            total = left + (noise * base >> np.uint64(32))  # a uniform digit without a division
            left, right = right, np.where(total >= base, total - base, total)
        result[outside] = left * base + right
        outside = outside[result[outside] >= sizes[outside].astype(np.uint64)]
    return result.astype(np.int64)

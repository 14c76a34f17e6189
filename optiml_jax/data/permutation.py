"""Keyed randomness: pure functions of (seed, purpose, ...), independent of NumPy version, host count and task order.

NumPy's generators may change their streams between releases, which would change the data of a resumed run; hashes
cannot.
"""

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SMALL = 64  # smaller sizes rank hashed keys: exactly uniform, which a Feistel network of so few states is not
_ROUNDS = 8


def key(*parts: str | int) -> np.uint64:
    """64 pseudo-random bits that depend on every part and its position, e.g. `key(seed, "rows", block)`."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def hashed(keys: np.ndarray | np.uint64, counters: np.ndarray) -> np.ndarray:
    """splitmix64 (Steele et al. 2014): elements `counters` of the streams that start at `keys`, uint64."""
    return mix(keys + (counters.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer, in place: every bit of the result depends on every bit of `x`."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def shuffled(n: int, key: np.uint64) -> np.ndarray:
    """A pseudo-random permutation of 0..n-1: int64 [n]."""
    return np.argsort(hashed(key, np.arange(n)), kind="stable")


def permuted(indices: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Maps each index by the permutation of 0..size-1 that its key determines; no permutation is ever stored.

    Args:
      indices: integers [n], 0 <= index < size.
      sizes: integers [n], below 2**32; equal keys have equal sizes.
      keys: uint64 [n].

    Returns:
      int64 [n].
    """
    result = np.empty(len(indices), np.int64)
    small = sizes < _SMALL
    result[small] = _ranked(indices[small], sizes[small], keys[small])
    result[~small] = _feistel(indices[~small], sizes[~small], keys[~small])
    return result


def _ranked(indices: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    groups, first, group = np.unique(keys, return_index=True, return_inverse=True)
    columns = np.arange(_SMALL)
    ranks = hashed(groups[:, None], columns[None])
    ranks[columns >= sizes[first][:, None]] = np.iinfo(np.uint64).max  # outside the size: sorted to the end
    return np.argsort(ranks, axis=1, kind="stable")[group, indices]


def _feistel(indices: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Black and Rogaway 2002: a Feistel network over pairs of digits below ceil(sqrt(size)), iterated until in
    range."""
    result = np.array(indices, np.uint64)
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

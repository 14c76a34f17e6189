"""A 128-bit hash of sharded arrays: no gathering, one pass over the bytes, the same on every mesh.

Each element's bits are mixed with its index, and the results are summed modulo 2**32, which no order of summation
changes: neither sharding nor the number of hosts matters. Four sums with different constants make 128 bits. It detects
damage and mistakes; it does not resist deliberate collisions.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optiml_jax.model.layers import Layers, is_layers

LANES = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F)  # odd constants of xxHash
UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


class Fingerprint:
    """The hash of a tree whose leaves are added one after another, in the order of `jax.tree.leaves`."""

    def __init__(self) -> None:
        self._total = np.zeros(len(LANES), np.uint32)

    def add(self, path: tuple, leaf: jax.Array | Layers) -> None:
        """Adds an array (up to 4 bytes per element) by its path in the tree; one per layer is as good as stacked."""
        name = f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}"
        seed = np.uint32(zlib.crc32(name.encode()))
        self._total = _mix(self._total + seed)
        parts = [(layer, array[None]) for layer, array in enumerate(leaf)] if is_layers(leaf) else [(0, leaf)]
        for first, part in parts:
            # Waits for each array: programs that sum over several processes deadlock on CPUs if two run at once.
            self._total += np.asarray(_sums(part, seed, np.uint32(first)))

    def __str__(self) -> str:
        return "".join(f"{int(lane):08x}" for lane in self._total)


def fingerprint(tree: Any) -> str:
    """32 hexadecimal digits that change with any bit, shape, dtype or name in a tree of arrays.

    Call it under `jax.set_mesh` if the arrays are on a mesh.
    """
    total = Fingerprint()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_layers):
        total.add(path, leaf)
    return str(total)


@jax.jit  # per array: parameters and moments share few shapes, and so the compiled programs
def _sums(leaf: jax.Array, seed: jax.Array, first: jax.Array) -> jax.Array:
    """The sums of an array that starts at index `first` of the first axis of the one that is hashed."""
    unsigned = UNSIGNED[leaf.dtype.itemsize]
    bits = leaf.astype(unsigned) if leaf.dtype == bool else jax.lax.bitcast_convert_type(leaf, unsigned)
    lanes = []
    for odd in map(np.uint32, LANES):
        index = seed
        for axis in range(leaf.ndim):
            count = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
            index = index * odd + (count + first if axis == 0 else count)
        lanes.append(_mix(bits.astype(jnp.uint32) * odd ^ _mix(index)).sum(dtype=jnp.uint32))
    return jnp.stack(lanes)


def _mix(x: Any) -> Any:
    """MurmurHash3's finalizer, a bijection: every bit of the result depends on every bit of `x`."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)

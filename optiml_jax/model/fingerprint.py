"""A 128-bit hash of arrays where they lie: no gathering, one pass over the bytes, the same on every mesh.

Each element's bits are mixed with its place and the sums are taken modulo 2**32, which no order of summing changes: so
neither sharding nor hosts matter. Four sums with different constants make 128 bits. It finds damage and mistakes; it is
not meant against somebody who looks for a collision.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LANES = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F)  # odd, of xxHash
UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def fingerprint(tree: Any) -> str:
    """32 hexadecimal digits that change with any bit, shape, dtype or name in a tree of arrays (up to 4 bytes each).

    Call it under `jax.set_mesh` where the arrays lie on a mesh.
    """
    total = np.zeros(len(LANES), np.uint32)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}"
        seed = np.uint32(zlib.crc32(name.encode()))
        # Waited for one by one: programs that sum over several processes deadlock on CPUs when two run at once.
        total = _mix(total + seed) + np.asarray(_sums(leaf, seed))
    return "".join(f"{int(lane):08x}" for lane in total)


@jax.jit  # of one array: parameters and moments share their few shapes, and so the programs
def _sums(leaf: jax.Array, seed: jax.Array) -> jax.Array:
    unsigned = UNSIGNED[leaf.dtype.itemsize]
    bits = leaf.astype(unsigned) if leaf.dtype == bool else jax.lax.bitcast_convert_type(leaf, unsigned)
    lanes = []
    for odd in map(np.uint32, LANES):
        place = seed
        for axis in range(leaf.ndim):
            place = place * odd + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        lanes.append(_mix(bits.astype(jnp.uint32) * odd ^ _mix(place)).sum(dtype=jnp.uint32))
    return jnp.stack(lanes)


def _mix(x: Any) -> Any:
    """MurmurHash3's finalizer: every bit of the result depends on every bit of `x`, and nothing is lost."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)

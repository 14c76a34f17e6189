"""Heads of K columns in Triton kernels, where K need not be a power of two.

Triton's arrays have sizes of powers of two, so inside a kernel an array of K columns is a tuple of column groups k:
heads of 80 have one of 64 and one of 16, which is a third less work than padding to 128.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

SMALLEST = 16  # minimum size of every dimension of a Triton product
LOG2_E = math.log2(math.e)  # the kernels use exp2
START = -1e30  # below every score, but finite: exp2(-inf - START) is 0 where a block is entirely masked for a query


def groups(K: int) -> list[tuple[int, int]]:
    """(start, width) of the powers of two that make up K columns; the last is padded to what products need."""
    groups, start = [], 0
    while start < K:
        width = max(SMALLEST, 1 << ((K - start).bit_length() - 1))
        groups.append((start, width))
        start += width
    return groups


def load(ref, K, *rows, mask=None):
    """Column groups of `ref[*rows]`, all its rows by default; padded columns are 0, and so is what `mask` excludes.

    Args:
      rows: indices of all dimensions but the last: slices, scalars, or one array.
      mask: bool, of the loaded rows.
    """
    parts = []
    for start, width in groups(K):
        part, seen = _part(ref, rows, start, width, K, mask)
        parts.append(triton.load(part, mask=seen, other=None if seen is None else 0))
    return tuple(parts)


def store(ref, parts, K, *rows, mask=None):
    """Writes column groups to `ref[*rows]`; arguments as in `load`."""
    for (start, width), x in zip(groups(K), parts):
        part, seen = _part(ref, rows, start, width, K, mask)
        triton.store(part, x.astype(ref.dtype), mask=seen)


def _part(ref, rows, start, width, K, mask):
    """Reference to a column group, and a mask of its real columns and of `mask`; None if that is all."""
    rows, columns = rows or (slice(None),), pl.ds(start, width)
    if any(getattr(index, "ndim", 0) for index in rows):  # the interpreter does not mix arrays with slices
        rows = [index[:, None] if getattr(index, "ndim", 0) else index for index in rows]
        columns = (start + jnp.arange(width))[None, :]
    part = ref.at[(*rows, columns)]
    real = start + jnp.arange(width) < K if start + width > K else None
    if mask is None:
        return part, None if real is None else jnp.broadcast_to(real, part.shape)
    mask = jnp.broadcast_to(mask[..., None], part.shape)
    return part, mask if real is None else mask & real


def dot(a, b):
    """Product with float32 sums; float32 operands are not rounded to TF32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, (((1,), (0,)), ((), ())), precision=precision, preferred_element_type=jnp.float32)


def inner_products(a, b):
    """Inner products of rows over all K columns: column groups [b, k] and [c, k] to [b, c]."""
    return sum(dot(x, y.T) for x, y in zip(a, b))


def add_weighted(sums, weights_bc, x):
    """Adds `weights_bc` times the column groups `x` [c, k] to the column groups `sums` [b, k]."""
    return tuple(part + dot(weights_bc.astype(y.dtype), y) for part, y in zip(sums, x))


def zeros_like(groups):
    return tuple(jnp.zeros(x.shape, jnp.float32) for x in groups)

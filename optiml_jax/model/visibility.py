"""Attention mask of packed rows, as one integer per key: the first query position that no longer attends to it.

The key at s is visible to the queries at t with s <= t < until[s]; in a plain document, until is its end. Documents
with a common prefix may share it: laid out as a tree in depth-first order, with positions that count from the root, a
key is visible to its descendants, so until is the end of its subtree, and every token attends to what it would attend
to in a row of its own.
"""

import jax
import jax.numpy as jnp


def visible(segment_ids_BT: jax.Array, until_BT: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Returns the first key that each query may attend to, and `until` of each key: both int32 [B, T].

    Args:
      segment_ids_BT: one id per document, or per tree of documents, in one contiguous run; 0 is padding.
      until_BT: for trees; None if every run is one document. Must not exceed the end of its run.
    """
    T = segment_ids_BT.shape[1]
    count_T = jnp.arange(T, dtype=jnp.int32)
    changes_BT = segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]
    starts_BT = jnp.pad(changes_BT, ((0, 0), (1, 0)), constant_values=True)
    first_BT = jax.lax.cummax(jnp.where(starts_BT, count_T, 0), axis=1)
    if until_BT is None:
        ends_BT = jnp.pad(changes_BT, ((0, 0), (0, 1)), constant_values=True)
        until_BT = jax.lax.cummin(jnp.where(ends_BT, count_T + 1, T), axis=1, reverse=True)
    return first_BT, until_BT


def sees(t: jax.Array, s: jax.Array, until: jax.Array) -> jax.Array:
    """Whether the query at t attends to the key at s; the three arguments broadcast."""
    return (s <= t) & (t < until)


def pad(first_BT: jax.Array, until_BT: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Appends `count` positions, which attend only to each other."""
    T = first_BT.shape[1]
    width = ((0, 0), (0, count))
    return jnp.pad(first_BT, width, constant_values=T), jnp.pad(until_BT, width, constant_values=T + count)

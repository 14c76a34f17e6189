"""Who sees whom in a packed row, as one integer a key: the first position after it that no longer sees it.

The key at s is visible to the queries at t with s <= t < until[s]. In a document that is its end. Documents that start
alike may share their start: laid out as a tree in depth-first order, positions counting from the root, a key is visible
to what lies below it, so `until` is the end of its subtree and every token sees what it would see alone.
"""

import jax
import jax.numpy as jnp


def visible(segment_ids_BT: jax.Array, until_BT: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Where each query may start to look, and `until` of each key: int32 [B, T] both.

    Args:
      segment_ids_BT: a document, or a tree of them, is a run of one id; 0 is padding.
      until_BT: of trees; None: every run is one document. Must not lead out of its run.
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
    """Whether the query at t sees the key at s; the three broadcast."""
    return (s <= t) & (t < until)


def fill(first_BT: jax.Array, until_BT: jax.Array, more: int) -> tuple[jax.Array, jax.Array]:
    """With `more` positions behind the row, which see themselves and nothing of the row."""
    T = first_BT.shape[1]
    room = ((0, 0), (0, more))
    return jnp.pad(first_BT, room, constant_values=T), jnp.pad(until_BT, room, constant_values=T + more)

"""The cache of keys and values: packed prompts are read (`read`), put into its rows (`admit`) and continued (`decode`).

A row holds its tokens from place 0 on, whatever the others hold, and nothing is padded in between: rows come and go
while the others stay. C places of a row, A prompts that are admitted, G tokens made at once.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optiml_jax.model import decoder, sharding
from optiml_jax.model.attention import attention, next_attention
from optiml_jax.model.config import OPTConfig

STEPS = 16  # G: tokens between two looks of the host, and places that a row must have beyond what it needs


class Cache(NamedTuple):
    """What goes on.

    Attributes:
      layers_NBHCK: keys, and values, of every layer; heads before places, as the products with them want it.
      next_B: how many tokens a row holds, which is the place, and the position, of its next.
      token_B: that next token, not yet read; -1 where the logits were not finite.
    """

    layers_NBHCK: tuple[jax.Array, jax.Array]
    next_B: jax.Array
    token_B: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def empty(rows: int, length: int, config: OPTConfig, dtype: jnp.dtype) -> Cache:
    """Of `rows` rows with `length` places."""
    shape = config.layers, rows, config.heads, length, config.head_dim
    layers = tuple(sharding.constrain(jnp.zeros(shape, dtype), "NBHCK") for _ in range(2))
    return Cache(layers, jnp.zeros(rows, jnp.int32), jnp.zeros(rows, jnp.int32))


@functools.partial(jax.jit, static_argnums=(2,))
def arrange(cache: Cache, rows_B: jax.Array, length: int) -> Cache:
    """The rows `rows_B` of a cache, with more places or fewer."""

    def of(layers_NBHCK):
        taken_NBHCK = layers_NBHCK[:, rows_B, :, :length]
        room = ((0, 0),) * 3 + ((0, length - taken_NBHCK.shape[3]), (0, 0))
        return sharding.constrain(jnp.pad(taken_NBHCK, room), "NBHCK")

    return Cache(tuple(map(of, cache.layers_NBHCK)), cache.next_B[rows_B], cache.token_B[rows_B])


@functools.partial(jax.jit, static_argnums=(5, 6))
def read(
    params: dict,
    tokens_BT: jax.Array,
    segment_ids_BT: jax.Array,
    positions_BT: jax.Array,
    until_BT: jax.Array,
    config: OPTConfig,
    dtype: jnp.dtype,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Reads rows of `trees.lay_out`.

    Returns:
      Hidden states that the embedding turns into logits, [B, T, E], and keys and values, [N, B, T, H, K] both.
    """

    def attend_row(_):
        return lambda q, k, v: (attention(q, k, v, segment_ids_BT, until_BT=until_BT), (k, v))

    embedding_VD = decoder.gathered_embedding(params, dtype)
    x_BTD = decoder.embed(params, tokens_BT, positions_BT, embedding_VD, config)
    x_BTD, kept = decoder.run_blocks(params, x_BTD, None, attend_row, config)
    return decoder.finish(params, x_BTD, config), jax.tree.map(lambda x: sharding.constrain(x, "NBTHK"), kept)


@functools.partial(jax.jit, static_argnums=(7,), donate_argnums=(1,))
def admit(
    params: dict,
    cache: Cache,
    hidden_BTE: jax.Array,
    kept_NBTHK: tuple[jax.Array, jax.Array],
    rows_A: jax.Array,
    places_AC: jax.Array,
    lengths_A: jax.Array,
    dtype: jnp.dtype,
) -> Cache:
    """Puts prompts that were read into rows of the cache, with the token that follows each.

    Args:
      hidden_BTE, kept_NBTHK: of `read`.
      rows_A: where they go; beyond the last row: nowhere.
      places_AC: of the tokens of each, row of the batch times T plus place in it; past its length anything.
    """

    def put(old_NBHCK, kept_NBTHK):
        flat_NTHK = kept_NBTHK.reshape(kept_NBTHK.shape[0], -1, *kept_NBTHK.shape[3:])
        fresh_NAHCK = flat_NTHK[:, places_AC].swapaxes(2, 3)
        return sharding.constrain(old_NBHCK.at[:, rows_A].set(fresh_NAHCK, mode="drop"), "NBHCK")

    last_A = jnp.take_along_axis(places_AC, lengths_A[:, None] - 1, 1)[:, 0]
    last_AE = hidden_BTE.reshape(-1, hidden_BTE.shape[-1])[last_A]
    token_A = _best(last_AE, decoder.gathered_embedding(params, dtype))
    return Cache(
        tuple(map(put, cache.layers_NBHCK, kept_NBTHK)),
        cache.next_B.at[rows_A].set(lengths_A, mode="drop"),
        cache.token_B.at[rows_A].set(token_A, mode="drop"),
    )


@functools.partial(jax.jit, static_argnums=(4, 5, 6), donate_argnums=(1,))
def decode(
    params: dict,
    cache: Cache,
    left_B: jax.Array,
    enough: jax.Array,
    config: OPTConfig,
    dtype: jnp.dtype,
    eos_id: int,
) -> tuple[jax.Array, jax.Array, Cache]:
    """The most likely next token of every row, again and again, `STEPS` times at most.

    Args:
      left_B: how many tokens a row may still make; 0 where it is over.
      enough: ends as soon as so many rows are over.

    Returns:
      Tokens [B, G]; what follows a row's end means nothing, -1 is no token: the logits were not finite. How many of the
      G were made. The cache with them.
    """
    embedding_VD = decoder.gathered_embedding(params, dtype)
    B, C = cache.next_B.shape[0], cache.layers_NBHCK[0].shape[3]
    seen_BC = jnp.arange(C) < cache.next_B[:, None]

    def over(step, token_B):
        return (token_B == eos_id) | (token_B < 0) | (step + 1 >= left_B)

    def make(carry):
        step, token_B, over_B, made_BG, fresh_NBHGK = carry
        seen_BG = jnp.broadcast_to(jnp.arange(STEPS) <= step, (B, STEPS))

        def attend_cache(layer):
            old_BHCK, fresh_BHGK = layer

            def attend(q_B1HK, *own_B1HK):
                now_BHGK = tuple(
                    jax.lax.dynamic_update_slice_in_dim(fresh, own.swapaxes(1, 2), step, 2)
                    for fresh, own in zip(fresh_BHGK, own_B1HK)
                )
                return next_attention(q_B1HK, (*old_BHCK, seen_BC), (*now_BHGK, seen_BG)), now_BHGK

            return attend

        x_B1D = decoder.embed(params, token_B[:, None], (cache.next_B + step)[:, None], embedding_VD, config)
        layers = cache.layers_NBHCK, fresh_NBHGK
        x_B1D, fresh_NBHGK = decoder.run_blocks(params, x_B1D, layers, attend_cache, config)
        best_B = _best(decoder.finish(params, x_B1D, config)[:, 0], embedding_VD)
        return step + 1, best_B, over_B | over(step, token_B), made_BG.at[:, step].set(token_B), fresh_NBHGK

    def go_on(carry):
        step, _, over_B, *_ = carry
        return (step < STEPS) & (over_B.sum() < enough)

    # The tokens made here stay beside the cache until the end: to write into it at a place a row costs a copy of it.
    shape = config.layers, B, config.heads, STEPS, config.head_dim
    fresh_NBHGK = tuple(sharding.constrain(jnp.zeros(shape, dtype), "NBHCK") for _ in range(2))
    start = 0, cache.token_B, left_B == 0, jnp.zeros((B, STEPS), jnp.int32), fresh_NBHGK
    steps, token_B, _, made_BG, fresh_NBHGK = jax.lax.while_loop(go_on, make, start)

    def put(old_NHCK, fresh_NHGK, place):
        return jax.lax.dynamic_update_slice_in_dim(old_NHCK, fresh_NHGK, place, 2)

    layers = tuple(
        sharding.constrain(jax.vmap(put, (1, 1, 0), 1)(old, fresh, cache.next_B), "NBHCK")
        for old, fresh in zip(cache.layers_NBHCK, fresh_NBHGK)
    )
    return made_BG, steps, Cache(layers, cache.next_B + steps, token_B)


def _best(hidden_BE: jax.Array, embedding_VD: jax.Array) -> jax.Array:
    """The most likely token, the first of equals, or -1 where a logit is no number to compare."""
    # Words first: with few rows a product of this form is bound by the embedding's bytes alone.
    logits_VB = jnp.einsum("ve,be->vb", embedding_VD, hidden_BE, preferred_element_type=jnp.float32)
    top_B = logits_VB.max(0)
    words_V1 = jnp.arange(len(logits_VB), dtype=jnp.int32)[:, None]
    best_B = jnp.where(logits_VB == top_B, words_V1, len(logits_VB)).min(0)
    return jnp.where(jnp.isfinite(logits_VB).all(0), best_B, -1)

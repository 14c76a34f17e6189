"""The KV cache: packed prompts are read (`read`), copied into its rows (`admit`) and continued (`decode`).

A row holds its tokens from position 0 on, whatever other rows hold, without padding in between: rows are admitted and
released independently. C: positions per row, A: prompts admitted together, G: tokens generated per call of `decode`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optiml_jax.inference.sampling import Rows, next_token
from optiml_jax.model import decoder, sharding
from optiml_jax.model.attention import attention, next_attention
from optiml_jax.model.config import OPTConfig

STEPS = 16  # G: decoding steps between two returns to the host; a row needs as many spare positions


class Cache(NamedTuple):
    """KV cache of one decoding batch.

    Attributes:
      layers_NBHCK: keys, and values, of every layer; heads before positions, as matrix products need them.
      next_B: number of tokens in each row, which is the position of its next token.
      token_B: that next token, not yet in the cache; -1 where the logits were not finite.
    """

    layers_NBHCK: tuple[jax.Array, jax.Array]
    next_B: jax.Array
    token_B: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def empty(rows: int, length: int, config: OPTConfig, dtype: jnp.dtype) -> Cache:
    """An empty cache of `rows` rows with `length` positions."""
    shape = config.layers, rows, config.heads, length, config.head_dim
    layers = tuple(sharding.constrain(jnp.zeros(shape, dtype), "NBHCK") for _ in range(2))
    return Cache(layers, jnp.zeros(rows, jnp.int32), jnp.zeros(rows, jnp.int32))


@functools.partial(jax.jit, static_argnums=(2,))
def resize(cache: Cache, rows_B: jax.Array, length: int) -> Cache:
    """Selects the rows `rows_B` of a cache, and truncates or extends them to `length` positions."""

    def select(layers_NBHCK):
        selected_NBHCK = layers_NBHCK[:, rows_B, :, :length]
        padding = ((0, 0),) * 3 + ((0, length - selected_NBHCK.shape[3]), (0, 0))
        return sharding.constrain(jnp.pad(selected_NBHCK, padding), "NBHCK")

    return Cache(tuple(map(select, cache.layers_NBHCK)), cache.next_B[rows_B], cache.token_B[rows_B])


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
    """Prefills rows of `prefix_sharing.lay_out`.

    Returns:
      Hidden states that the embedding turns into logits, [B, T, E], and keys and values, both [N, B, T, H, K].
    """

    def attend_row(_):
        return lambda q, k, v: (attention(q, k, v, segment_ids_BT, until_BT=until_BT), (k, v))

    embedding_VD = decoder.gathered_embedding(params, dtype)
    x_BTD = decoder.embed(params, tokens_BT, positions_BT, embedding_VD, config)
    x_BTD, keys_values = decoder.run_blocks(params, x_BTD, None, attend_row, config)
    return decoder.finish(params, x_BTD, config), jax.tree.map(lambda x: sharding.constrain(x, "NBTHK"), keys_values)


@functools.partial(jax.jit, static_argnums=(8,), donate_argnums=(1,))
def admit(
    params: dict,
    cache: Cache,
    hidden_BTE: jax.Array,
    keys_values_NBTHK: tuple[jax.Array, jax.Array],
    rows_A: jax.Array,
    positions_AC: jax.Array,
    lengths_A: jax.Array,
    sampling: Rows | None,
    dtype: jnp.dtype,
) -> Cache:
    """Copies prefilled prompts into rows of the cache, with the token that follows each.

    Args:
      hidden_BTE, keys_values_NBTHK: results of `read`.
      rows_A: destination rows; entries beyond the last row are dropped.
      positions_AC: positions of each prompt's tokens in `read`'s batch, as row * T + position; arbitrary beyond its
        length.
      sampling: of the A prompts.
    """

    def put(old_NBHCK, keys_values_NBTHK):
        flat_NTHK = keys_values_NBTHK.reshape(keys_values_NBTHK.shape[0], -1, *keys_values_NBTHK.shape[3:])
        new_NAHCK = flat_NTHK[:, positions_AC].swapaxes(2, 3)
        return sharding.constrain(old_NBHCK.at[:, rows_A].set(new_NAHCK, mode="drop"), "NBHCK")

    last_A = jnp.take_along_axis(positions_AC, lengths_A[:, None] - 1, 1)[:, 0]
    last_AE = hidden_BTE.reshape(-1, hidden_BTE.shape[-1])[last_A]
    token_A = next_token(last_AE, decoder.gathered_embedding(params, dtype), sampling, lengths_A)
    return Cache(
        tuple(map(put, cache.layers_NBHCK, keys_values_NBTHK)),
        cache.next_B.at[rows_A].set(lengths_A, mode="drop"),
        cache.token_B.at[rows_A].set(token_A, mode="drop"),
    )


@functools.partial(jax.jit, static_argnums=(6, 7, 8), donate_argnums=(1,))
def decode(
    params: dict,
    cache: Cache,
    left_B: jax.Array,
    enough: jax.Array,
    most: jax.Array,
    sampling: Rows | None,
    config: OPTConfig,
    dtype: jnp.dtype,
    eos_id: int,
) -> tuple[jax.Array, jax.Array, Cache]:
    """Generates the next token of every row, up to `STEPS` times.

    Args:
      left_B: number of tokens that each row may still generate; 0 for rows without a request.
      enough: returns as soon as so many rows are finished.
      most: steps, up to `STEPS`.

    Returns:
      Tokens [B, G], meaningless after a row's end; -1 marks logits that were not finite. The number of steps taken. The
      updated cache.
    """
    embedding_VD = decoder.gathered_embedding(params, dtype)
    B, C = cache.next_B.shape[0], cache.layers_NBHCK[0].shape[3]
    seen_BC = jnp.arange(C) < cache.next_B[:, None]

    def over(step, token_B):
        return (token_B == eos_id) | (token_B < 0) | (step + 1 >= left_B)

    def generate(carry):
        step, token_B, over_B, generated_BG, new_NBHGK = carry
        seen_BG = jnp.broadcast_to(jnp.arange(STEPS) <= step, (B, STEPS))

        def attend_cache(layer):
            old_BHCK, new_BHGK = layer

            def attend(q_B1HK, *key_value_B1HK):
                now_BHGK = tuple(
                    jax.lax.dynamic_update_slice_in_dim(new, x.swapaxes(1, 2), step, 2)
                    for new, x in zip(new_BHGK, key_value_B1HK)
                )
                return next_attention(q_B1HK, (*old_BHCK, seen_BC), (*now_BHGK, seen_BG)), now_BHGK

            return attend

        x_B1D = decoder.embed(params, token_B[:, None], (cache.next_B + step)[:, None], embedding_VD, config)
        layers = cache.layers_NBHCK, new_NBHGK
        x_B1D, new_NBHGK = decoder.run_blocks(params, x_B1D, layers, attend_cache, config)
        hidden_BE = decoder.finish(params, x_B1D, config)[:, 0]
        next_B = next_token(hidden_BE, embedding_VD, sampling, cache.next_B + step + 1)
        return step + 1, next_B, over_B | over(step, token_B), generated_BG.at[:, step].set(token_B), new_NBHGK

    def unfinished(carry):
        step, _, over_B, *_ = carry
        return (step < most) & (over_B.sum() < enough)

    # New tokens stay outside the cache until the end: writing at a different position per row copies the whole cache.
    shape = config.layers, B, config.heads, STEPS, config.head_dim
    new_NBHGK = tuple(sharding.constrain(jnp.zeros(shape, dtype), "NBHCK") for _ in range(2))
    start = 0, cache.token_B, left_B == 0, jnp.zeros((B, STEPS), jnp.int32), new_NBHGK
    steps, token_B, _, generated_BG, new_NBHGK = jax.lax.while_loop(unfinished, generate, start)

    def put(old_NHCK, new_NHGK, position):
        return jax.lax.dynamic_update_slice_in_dim(old_NHCK, new_NHGK, position, 2)

    layers = tuple(
        sharding.constrain(jax.vmap(put, (1, 1, 0), 1)(old, new, cache.next_B), "NBHCK")
        for old, new in zip(cache.layers_NBHCK, new_NBHGK)
    )
    return generated_BG, steps, Cache(layers, cache.next_B + steps, token_B)

"""The KV cache: packed prompts are read (`read`), copied into its rows (`admit`) and continued (`decode`).

A row holds its tokens from position 0 on, whatever other rows hold, without padding in between: rows are admitted and
released independently. On GPUs the cache consists of pages instead, and a kernel reads them (`cache_attention.py`).

C: positions per row or page, Y: pages, A: prompts and M: tokens admitted together, G: tokens generated per call of
`decode`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optiml_jax.inference import cache_attention
from optiml_jax.inference.sampling import Rows, next_token
from optiml_jax.model import decoder, sharding
from optiml_jax.model.attention import attention, next_attention
from optiml_jax.model.block import block_forward
from optiml_jax.model.config import OPTConfig

STEPS = 16  # G: decoding steps between two returns to the host; a row needs as many spare positions


class Cache(NamedTuple):
    """KV cache of one decoding batch.

    Attributes:
      layers_NBHCK: keys, and values, of every layer; heads before positions, as matrix products need them. In pages:
        NYHCK.
      next_B: number of tokens in each row, which is the position of its next token.
      token_B: that next token, not yet in the cache; -1 where the logits were not finite.
    """

    layers_NBHCK: tuple[jax.Array, jax.Array]
    next_B: jax.Array
    token_B: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def empty(rows: int, length: int, config: OPTConfig, dtype: jnp.dtype) -> Cache:
    """An empty cache of `rows` rows with `length` positions."""
    return _empty("NBHCK", rows, length, rows, config, dtype)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def empty_pages(pages: int, length: int, rows: int, config: OPTConfig, dtype: jnp.dtype) -> Cache:
    """An empty cache of `pages` pages with `length` positions each, for `rows` rows."""
    return _empty("NYHCK", pages, length, rows, config, dtype)


def _empty(letters: str, count: int, length: int, rows: int, config: OPTConfig, dtype: jnp.dtype) -> Cache:
    """`count` rows or pages of zeros, and the state of `rows` rows."""
    shape = config.layers, count, config.heads, length, config.head_dim
    layers = tuple(sharding.constrain(jnp.zeros(shape, dtype), letters) for _ in range(2))
    return Cache(layers, jnp.zeros(rows, jnp.int32), jnp.zeros(rows, jnp.int32))


def select_rows(cache: Cache, rows_B: jax.Array) -> Cache:
    """Selects rows of a cache in pages; these are not touched."""
    next_B, token_B = _select(cache.next_B, cache.token_B, rows_B)
    return cache._replace(next_B=next_B, token_B=token_B)


@jax.jit
def _select(next_B: jax.Array, token_B: jax.Array, rows_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    return next_B[rows_B], token_B[rows_B]


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

    layers = tuple(map(put, cache.layers_NBHCK, keys_values_NBTHK))
    last_A = jnp.take_along_axis(positions_AC, lengths_A[:, None] - 1, 1)[:, 0]
    return _start_rows(params, cache, layers, hidden_BTE, rows_A, lengths_A, last_A, sampling, dtype)


@functools.partial(jax.jit, static_argnums=(10,), donate_argnums=(1,))
def admit_to_pages(
    params: dict,
    cache: Cache,
    hidden_BTE: jax.Array,
    keys_values_NBTHK: tuple[jax.Array, jax.Array],
    source_M: jax.Array,
    target_2M: jax.Array,
    rows_A: jax.Array,
    lengths_A: jax.Array,
    last_A: jax.Array,
    sampling: Rows | None,
    dtype: jnp.dtype,
) -> Cache:
    """As `admit`, for a cache in pages.

    Args:
      source_M: positions of the copied tokens in `read`'s batch, as row * T + position.
      target_2M: the page of each and its position there; pages beyond the last one are dropped.
      last_A: positions of the last tokens of the prompts, as `source_M`.
    """

    def put(pages_NYHCK, keys_values_NBTHK):
        flat_NTHK = keys_values_NBTHK.reshape(keys_values_NBTHK.shape[0], -1, *keys_values_NBTHK.shape[3:])
        new_MNHK = flat_NTHK[:, source_M].swapaxes(0, 1)
        return sharding.constrain(pages_NYHCK.at[:, target_2M[0], :, target_2M[1]].set(new_MNHK, mode="drop"), "NYHCK")

    layers = tuple(map(put, cache.layers_NBHCK, keys_values_NBTHK))
    return _start_rows(params, cache, layers, hidden_BTE, rows_A, lengths_A, last_A, sampling, dtype)


def _start_rows(params, cache, layers, hidden_BTE, rows_A, lengths_A, last_A, sampling, dtype) -> Cache:
    """Sets the state of rows that start: the length of the prompt, and the token that follows its last one."""
    last_AE = hidden_BTE.reshape(-1, hidden_BTE.shape[-1])[last_A]
    token_A = next_token(last_AE, decoder.gathered_embedding(params, dtype), sampling, lengths_A)
    return Cache(
        layers,
        cache.next_B.at[rows_A].set(lengths_A, mode="drop"),
        cache.token_B.at[rows_A].set(token_A, mode="drop"),
    )


class _Attention(NamedTuple):
    """How decoding reads and writes the cache.

    Attributes:
      state: what the steps of one call update.
      run_blocks: (hidden states [B, 1, D], step, state) -> (hidden states, state).
      finish: state -> keys and values of the updated cache.
    """

    state: tuple[jax.Array, jax.Array]
    run_blocks: Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
    finish: Callable[[Any], tuple[jax.Array, jax.Array]]


def _in_plain_jax(params: dict, cache: Cache, config: OPTConfig, dtype: jnp.dtype) -> _Attention:
    """Reads whole rows. New tokens stay outside the cache until the end: writing at a different position per row would
    copy the whole cache at every step."""
    B, C = cache.next_B.shape[0], cache.layers_NBHCK[0].shape[3]
    seen_BC = jnp.arange(C) < cache.next_B[:, None]

    def run_blocks(x_B1D, step, new_NBHGK):
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

        return decoder.run_blocks(params, x_B1D, (cache.layers_NBHCK, new_NBHGK), attend_cache, config)

    def finish(new_NBHGK):
        def put(old_NHCK, new_NHGK, position):
            return jax.lax.dynamic_update_slice_in_dim(old_NHCK, new_NHGK, position, 2)

        return tuple(
            sharding.constrain(jax.vmap(put, (1, 1, 0), 1)(old, new, cache.next_B), "NBHCK")
            for old, new in zip(cache.layers_NBHCK, new_NBHGK)
        )

    shape = config.layers, B, config.heads, STEPS, config.head_dim
    new_NBHGK = tuple(sharding.constrain(jnp.zeros(shape, dtype), "NBHCK") for _ in range(2))
    return _Attention(new_NBHGK, run_blocks, finish)


def _in_kernel(params: dict, cache: Cache, reads: cache_attention.Reads, config: OPTConfig) -> _Attention:
    """Reads pages, as far as they are filled, and writes new tokens in place. Needs one array per layer."""
    interpret = sharding.platform() != "gpu"
    blocks = decoder.separate_blocks(params, config)

    def run_blocks(x_B1D, step, layers_NBHCK):
        for layer, block in enumerate(blocks):

            def attend(q_B1HK, key_B1HK, value_B1HK, layer=layer, layers_NBHCK=layers_NBHCK):
                new = (x[:, 0] for x in (q_B1HK, key_B1HK, value_B1HK))
                out_BHK, layers_NBHCK = cache_attention.attend(
                    *new, layers_NBHCK, jnp.int32(layer), cache.next_B + step, reads, interpret
                )
                return out_BHK[:, None], layers_NBHCK

            x_B1D, layers_NBHCK = block_forward(block, x_B1D, attend, config)
        return x_B1D, layers_NBHCK

    return _Attention(cache.layers_NBHCK, run_blocks, lambda layers_NBHCK: layers_NBHCK)


@functools.partial(
    jax.jit,
    static_argnums=(7, 8, 9),
    donate_argnums=(1,),
    # XLA would compute query, key and value in one product, for which it copies their weights together at every step.
    compiler_options={"xla_gpu_dot_merger_threshold_mb": 0},
)
def decode(
    params: dict,
    cache: Cache,
    left_B: jax.Array,
    enough: jax.Array,
    most: jax.Array,
    sampling: Rows | None,
    reads: cache_attention.Reads | None,
    config: OPTConfig,
    dtype: jnp.dtype,
    eos_id: int,
) -> tuple[jax.Array, jax.Array, Cache]:
    """Generates the next token of every row, up to `STEPS` times.

    Args:
      left_B: number of tokens that each row may still generate; 0 for rows without a request.
      enough: returns as soon as so many rows are finished.
      most: steps, up to `STEPS`.
      reads: the kernel's, for parameters with one array per layer; None computes in plain JAX.

    Returns:
      Tokens [B, G], meaningless after a row's end; -1 marks logits that were not finite. The number of steps taken. The
      updated cache.
    """
    embedding_VD = decoder.gathered_embedding(params, dtype)
    if reads is None:
        in_cache = _in_plain_jax(params, cache, config, dtype)
    else:
        in_cache = _in_kernel(params, cache, reads, config)

    def over(step, token_B):
        return (token_B == eos_id) | (token_B < 0) | (step + 1 >= left_B)

    def generate(carry):
        step, token_B, over_B, generated_BG, state = carry
        x_B1D = decoder.embed(params, token_B[:, None], (cache.next_B + step)[:, None], embedding_VD, config)
        x_B1D, state = in_cache.run_blocks(x_B1D, step, state)
        hidden_BE = decoder.finish(params, x_B1D, config)[:, 0]
        next_B = next_token(hidden_BE, embedding_VD, sampling, cache.next_B + step + 1)
        return step + 1, next_B, over_B | over(step, token_B), generated_BG.at[:, step].set(token_B), state

    def unfinished(carry):
        step, _, over_B, *_ = carry
        return (step < most) & (over_B.sum() < enough)

    start = 0, cache.token_B, left_B == 0, jnp.zeros((len(left_B), STEPS), jnp.int32), in_cache.state
    steps, token_B, _, generated_BG, state = jax.lax.while_loop(unfinished, generate, start)
    return generated_BG, steps, Cache(in_cache.finish(state), cache.next_B + steps, token_B)

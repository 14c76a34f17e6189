"""Attention of one new token per row over the KV cache, on GPUs: two Pallas-Triton kernels.

The cache is read in blocks of positions, each by one program of the first kernel (Flash-Decoding, Dao et al. 2023), and
only as far as a row is filled. A block whose tokens, and all before it, are the same in several rows (an instruction,
demonstrations) is read once for up to `QUERIES` of them. The first kernel also writes the new keys and values into the
cache, in place; the second one sums the blocks of each row.

I: reads, S: blocks per row, Q: rows that share a read, c: a position in a block, k: a group of columns of a head.
"""

import functools
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from optiml_jax.model import columns, sharding

QUERIES = columns.SMALLEST  # Q: Triton's products have no fewer rows, so that sharing costs nothing
PROGRAMS = 1024  # of the first kernel: as many as the largest GPUs run at once; each reads block after block
BLOCK = 64  # positions


class Reads(NamedTuple):
    """The blocks of the cache that are read, for the rows of every device one after another; see `plan_reads`.

    Attributes:
      count_X: number of reads of each of the X devices that hold different rows.
      row_I, block_I: the row of the cache, counted on its device, and the block in it.
      queries_IQ: the rows that attend to it, counted on their device; from the number of rows on there are none.
      blocks_B: number of blocks that each row attends to.
    """

    count_X: np.ndarray
    row_I: np.ndarray
    block_I: np.ndarray
    queries_IQ: np.ndarray
    blocks_B: np.ndarray


def plan_reads(prefixes: Sequence[Sequence[int]], filled: Sequence[int], length: int, devices: int = 1) -> Reads:
    """Decides which blocks are read and for which rows.

    Args:
      prefixes: of each row, numbers that identify its leading whole blocks: equal at an index where all tokens up to
        the end of that block are equal. From `block_prefixes`.
      filled: of each row, the number of positions that it may fill; 0 for rows that are not in use.
      length: positions of a row of the cache, a multiple of `BLOCK`.
      devices: that hold equal numbers of the rows, in order.
    """
    rows, S = len(filled) // devices, length // BLOCK
    blocks_B = -(-np.asarray(filled, np.int32) // BLOCK)
    parts = [
        _plan_device(prefixes[first : first + rows], blocks_B[first : first + rows], S)
        for first in range(0, len(filled), rows)
    ]
    return Reads(*(np.concatenate(arrays) for arrays in zip(*parts)), blocks_B)


def block_prefixes(ids: Sequence[int]) -> list[int]:
    """Numbers that identify the whole blocks of a prompt, each with all tokens before it: 63 bits of a hash."""
    digest, numbers = b"", []
    for end in range(BLOCK, len(ids) + 1, BLOCK):
        digest = hashlib.blake2b(digest + np.asarray(ids[end - BLOCK : end], np.int32).tobytes()).digest()
        numbers.append(int.from_bytes(digest[:8], "little") >> 1)
    return numbers


def _plan_device(prefixes, blocks_B, S):
    rows = len(blocks_B)
    # A block that may be shared has its number, which is not negative; any other one its own, below 0.
    number_BS = -1 - np.arange(rows * S, dtype=np.int64).reshape(rows, S)
    for row, numbers in enumerate(prefixes):
        number_BS[row, : len(numbers)] = numbers
    row_n, block_n = np.nonzero(np.arange(S) < blocks_B[:, None])
    number_n = number_BS[row_n, block_n]
    order_n = np.argsort(number_n, kind="stable")
    is_first_n = np.diff(number_n[order_n], prepend=np.iinfo(np.int64).min) != 0
    count_n = np.arange(len(order_n))
    place_n = count_n - np.maximum.accumulate(np.where(is_first_n, count_n, 0))  # among the rows with this number
    read_n = np.cumsum(place_n % QUERIES == 0) - 1
    row_I, block_I = np.zeros(rows * S, np.int32), np.zeros(rows * S, np.int32)
    queries_IQ = np.full((rows * S, QUERIES), rows, np.int32)
    leads_n = order_n[place_n % QUERIES == 0]
    row_I[: len(leads_n)], block_I[: len(leads_n)] = row_n[leads_n], block_n[leads_n]
    queries_IQ[read_n, place_n % QUERIES] = row_n[order_n]
    return np.array([len(leads_n)], np.int32), row_I, block_I, queries_IQ


def attend(
    q_BHK: jax.Array,
    key_BHK: jax.Array,
    value_BHK: jax.Array,
    cache_NBHCK: tuple[jax.Array, jax.Array],
    layer: jax.Array,
    position_B: jax.Array,
    reads: Reads,
    interpret: bool = False,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Attends to the filled positions of each row and to its new token, and writes that into the cache.

    Args:
      q_BHK: queries, already scaled.
      key_BHK, value_BHK: of the new tokens.
      cache_NBHCK: keys and values of all layers; donated where the caller's program allows.
      layer: int32 [], which of them.
      position_B: of the new tokens, below the `filled` of `plan_reads` for the rows in use.
      interpret: runs the kernels as XLA operations, on any device.

    Returns:
      [B, H, K] in the dtype of `q_BHK`, 0 for rows that are not in use, and the cache.
    """
    compute = functools.partial(_attend, interpret=interpret)
    arguments = q_BHK, key_BHK, value_BHK, *cache_NBHCK, layer, position_B, *reads
    if jax.sharding.get_abstract_mesh().empty:
        return compute(*arguments)
    heads, cache, rows = (sharding.spec(letters) for letters in ("BHK", "NBHCK", "B"))
    specs = (heads, heads, heads, cache, cache, sharding.spec(""), rows, rows, rows, rows, sharding.spec("BT"), rows)
    mapped = jax.shard_map(compute, in_specs=specs, out_specs=(heads, (cache, cache)), check_vma=False)
    return mapped(*arguments)


def _attend(
    q_BHK,
    key_BHK,
    value_BHK,
    keys_NBHCK,
    values_NBHCK,
    layer,
    position_B,
    count_1,
    row_I,
    block_I,
    queries_IQ,
    blocks_B,
    *,
    interpret,
):
    B, H, K = q_BHK.shape
    S = pl.next_power_of_2(keys_NBHCK.shape[3] // BLOCK)
    programs = min(len(row_I), pl.cdiv(PROGRAMS, H))
    f32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    # Row B takes what the free places of `queries_IQ` would write.
    out_BSHK, top_BSH, sum_BSH = f32((B + 1, S, H, K)), f32((B + 1, S, H)), f32((B + 1, S, H))
    cache = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (keys_NBHCK, values_NBHCK)]
    *cache_NBHCK, out_BSHK, top_BSH, sum_BSH = pl.pallas_call(
        functools.partial(_read_kernel, programs=programs, K=K),
        grid=(H, programs),
        out_shape=[*cache, out_BSHK, top_BSH, sum_BSH],
        input_output_aliases={9: 0, 10: 1},
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="cache_attention_read",
    )(
        jnp.reshape(layer, 1).astype(jnp.int32),
        count_1,
        row_I,
        block_I,
        queries_IQ,
        position_B,
        q_BHK,
        key_BHK,
        value_BHK,
        keys_NBHCK,
        values_NBHCK,
    )
    (out_BHK,) = pl.pallas_call(
        functools.partial(_sum_kernel, K=K),
        grid=(B, H),
        out_shape=[jax.ShapeDtypeStruct(q_BHK.shape, q_BHK.dtype)],
        compiler_params=triton.CompilerParams(num_warps=1, num_stages=1),
        interpret=interpret,
        name="cache_attention_sum",
    )(blocks_B, out_BSHK, top_BSH, sum_BSH)
    return out_BHK, tuple(cache_NBHCK)


def _read_kernel(
    layer_ref,
    count_ref,
    row_ref,
    block_ref,
    queries_ref,
    position_ref,
    q_ref,
    key_ref,
    value_ref,
    _keys_ref,  # the outputs of the same memory are read and written
    _values_ref,
    keys_ref,
    values_ref,
    out_ref,
    top_ref,
    sum_ref,
    *,
    programs,
    K,
):
    head, first, layer = pl.program_id(0), pl.program_id(1), layer_ref[0]
    rows = q_ref.shape[0]

    def read(i, carry):
        index = first + i * programs
        row, block = row_ref[index], block_ref[index]
        start, position = block * BLOCK, position_ref[row]
        t_c = start + jnp.arange(BLOCK)
        place = layer, row, head, pl.ds(start, BLOCK)
        keys_ck = columns.load(keys_ref, K, *place, mask=t_c < position)
        values_ck = columns.load(values_ref, K, *place, mask=t_c < position)
        # The new token's block is read for its own row alone.
        is_new_c1 = (t_c == position)[:, None]
        key_k, value_k = columns.load(key_ref, K, row, head), columns.load(value_ref, K, row, head)
        keys_ck = tuple(jnp.where(is_new_c1, new[None], old) for new, old in zip(key_k, keys_ck))
        values_ck = tuple(jnp.where(is_new_c1, new[None], old) for new, old in zip(value_k, values_ck))

        @pl.when((start <= position) & (position < start + BLOCK))
        def _():
            columns.store(keys_ref, key_k, K, layer, row, head, position)
            columns.store(values_ref, value_k, K, layer, row, head, position)

        query_q = queries_ref[index, :]
        q_qk = columns.load(q_ref, K, jnp.minimum(query_q, rows - 1), head)
        scores_qc = columns.inner_products(q_qk, keys_ck) * columns.LOG2_E
        scores_qc = jnp.where((t_c <= position)[None, :], scores_qc, -jnp.inf)
        top_q = jnp.maximum(scores_qc.max(1), columns.START)
        weights_qc = jnp.exp2(scores_qc - top_q[:, None])
        out_qk = columns.add_weighted(columns.zeros_like(q_qk), weights_qc, values_ck)
        columns.store(out_ref, out_qk, K, query_q, block, head)
        triton.store(top_ref.at[query_q, block, head], top_q)
        triton.store(sum_ref.at[query_q, block, head], weights_qc.sum(1))
        return carry

    jax.lax.fori_loop(0, pl.cdiv(count_ref[0] - first, programs), read, 0)


def _sum_kernel(blocks_ref, out_ref, top_ref, sum_ref, result_ref, *, K):
    row, head = pl.program_id(0), pl.program_id(1)
    used_s = jnp.arange(out_ref.shape[1]) < blocks_ref[row]
    top_s = triton.load(top_ref.at[row, :, head], mask=used_s, other=columns.START)
    sum_s = triton.load(sum_ref.at[row, :, head], mask=used_s, other=0)
    weight_s = jnp.exp2(top_s - top_s.max())
    total = (weight_s * sum_s).sum()
    scale_s = weight_s / jnp.where(total > 0, total, 1.0)
    parts_sk = columns.load(out_ref, K, row, slice(None), head, mask=used_s)
    columns.store(result_ref, ((x * scale_s[:, None]).sum(0) for x in parts_sk), K, row, head)

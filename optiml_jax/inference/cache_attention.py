"""Attention of one new token per row over a KV cache in pages, on GPUs: two Pallas-Triton kernels.

A page holds the keys and values of `PAGE` consecutive positions of a row. Each is read by one program of the first
kernel (Flash-Decoding, Dao et al. 2023), and only if the row has come so far. A page that several rows have in common
(an instruction, demonstrations) is read once for up to `QUERIES` of them. The first kernel also writes the new keys and
values, in place; the second one sums the pages of each row.

Y: pages of the cache, S: pages per row at most, I: reads, Q: rows that share a read, c: a position in a page, k: a
group of columns of a head.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from optiml_jax.model import columns, sharding

QUERIES = columns.SMALLEST  # Q: Triton's products have no fewer rows, so that sharing costs nothing
PROGRAMS = 1024  # of the first kernel: as many as the largest GPUs run at once; each reads page after page
PAGE = 64  # positions


class Reads(NamedTuple):
    """The pages that are read, for the rows of every device one after another; see `plan_reads`.

    Attributes:
      count_X: number of reads of each of the X devices that hold different rows.
      page_I: which page, counted on its device.
      index_I: its number among the pages of its rows.
      row_I: a row that it belongs to, counted on its device.
      queries_IQ: all of them; from the number of rows on there are none.
      pages_B: number of pages that each row attends to.
    """

    count_X: np.ndarray
    page_I: np.ndarray
    index_I: np.ndarray
    row_I: np.ndarray
    queries_IQ: np.ndarray
    pages_B: np.ndarray


def plan_reads(tables: Sequence[Sequence[int]], most: int, devices: int = 1) -> Reads:
    """Decides which pages are read and for which rows.

    Args:
      tables: of each row, the pages that it may fill in the next steps, counted on its device; empty for rows that are
        not in use. A page has the same number in all rows.
      most: S.
      devices: that hold equal numbers of the rows, in order.
    """
    rows = len(tables) // devices
    parts = [_plan_device(tables[first : first + rows], most) for first in range(0, len(tables), rows)]
    return Reads(*(np.concatenate(arrays) for arrays in zip(*parts)))


def _plan_device(tables, most):
    rows = len(tables)
    pages_B = np.array([len(table) for table in tables], np.int32)
    row_n, index_n = np.nonzero(np.arange(most) < pages_B[:, None])
    page_n = np.concatenate([np.asarray(table, np.int32) for table in tables])
    order_n = np.argsort(page_n, kind="stable")
    is_first_n = np.diff(page_n[order_n], prepend=-1) != 0
    count_n = np.arange(len(order_n))
    place_n = count_n - np.maximum.accumulate(np.where(is_first_n, count_n, 0))  # among the rows with this page
    read_n = np.cumsum(place_n % QUERIES == 0) - 1
    leads_n = order_n[place_n % QUERIES == 0]
    page_I, index_I, row_I = (np.zeros(rows * most, np.int32) for _ in range(3))
    for array_I, values_n in ((page_I, page_n), (index_I, index_n), (row_I, row_n)):
        array_I[: len(leads_n)] = values_n[leads_n]
    queries_IQ = np.full((rows * most, QUERIES), rows, np.int32)
    queries_IQ[read_n, place_n % QUERIES] = row_n[order_n]
    return np.array([len(leads_n)], np.int32), page_I, index_I, row_I, queries_IQ, pages_B


def attend(
    q_BHK: jax.Array,
    key_BHK: jax.Array,
    value_BHK: jax.Array,
    cache_NYHCK: tuple[jax.Array, jax.Array],
    layer: jax.Array,
    position_B: jax.Array,
    reads: Reads,
    interpret: bool = False,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Attends to the filled positions of each row and to its new token, and writes that into its page.

    Args:
      q_BHK: queries, already scaled.
      key_BHK, value_BHK: of the new tokens.
      cache_NYHCK: keys and values of all layers, in pages; donated where the caller's program allows.
      layer: int32 [], which of them.
      position_B: of the new tokens. Beyond the pages of its row, a token is not written.
      interpret: runs the kernels as XLA operations, on any device.

    Returns:
      [B, H, K] in the dtype of `q_BHK`, 0 for rows that are not in use, and the cache.
    """
    compute = functools.partial(_attend, interpret=interpret)
    arguments = q_BHK, key_BHK, value_BHK, *cache_NYHCK, layer, position_B, *reads
    if jax.sharding.get_abstract_mesh().empty:
        return compute(*arguments)
    heads, cache, rows = (sharding.spec(letters) for letters in ("BHK", "NYHCK", "B"))
    specs = (heads, heads, heads, cache, cache, sharding.spec(""), *[rows] * 5, sharding.spec("BT"), rows)
    mapped = jax.shard_map(compute, in_specs=specs, out_specs=(heads, (cache, cache)), check_vma=False)
    return mapped(*arguments)


def _attend(
    q_BHK,
    key_BHK,
    value_BHK,
    keys_NYHCK,
    values_NYHCK,
    layer,
    position_B,
    count_1,
    page_I,
    index_I,
    row_I,
    queries_IQ,
    pages_B,
    *,
    interpret,
):
    B, H, K = q_BHK.shape
    S = pl.next_power_of_2(len(row_I) // B)
    programs = min(len(row_I), pl.cdiv(PROGRAMS, H))
    f32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    # Row B takes what the free places of `queries_IQ` would write.
    out_BSHK, top_BSH, sum_BSH = f32((B + 1, S, H, K)), f32((B + 1, S, H)), f32((B + 1, S, H))
    cache = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (keys_NYHCK, values_NYHCK)]
    *cache_NYHCK, out_BSHK, top_BSH, sum_BSH = pl.pallas_call(
        functools.partial(_read_kernel, programs=programs, K=K),
        grid=(H, programs),
        out_shape=[*cache, out_BSHK, top_BSH, sum_BSH],
        input_output_aliases={10: 0, 11: 1},
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="cache_attention_read",
    )(
        jnp.reshape(layer, 1).astype(jnp.int32),
        count_1,
        page_I,
        index_I,
        row_I,
        queries_IQ,
        position_B,
        q_BHK,
        key_BHK,
        value_BHK,
        keys_NYHCK,
        values_NYHCK,
    )
    (out_BHK,) = pl.pallas_call(
        functools.partial(_sum_kernel, K=K),
        grid=(B, H),
        out_shape=[jax.ShapeDtypeStruct(q_BHK.shape, q_BHK.dtype)],
        compiler_params=triton.CompilerParams(num_warps=1, num_stages=1),
        interpret=interpret,
        name="cache_attention_sum",
    )(pages_B, out_BSHK, top_BSH, sum_BSH)
    return out_BHK, tuple(cache_NYHCK)


def _read_kernel(
    layer_ref,
    count_ref,
    page_ref,
    index_ref,
    row_ref,
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
        number = first + i * programs
        page, index, row = page_ref[number], index_ref[number], row_ref[number]
        start, position = index * PAGE, position_ref[row]
        t_c = start + jnp.arange(PAGE)
        place = layer, page, head, slice(None)
        keys_ck = columns.load(keys_ref, K, *place, mask=t_c < position)
        values_ck = columns.load(values_ref, K, *place, mask=t_c < position)
        # The new token's page belongs to its row alone; in a page that rows share, all positions are filled.
        is_new_c1 = (t_c == position)[:, None]
        key_k, value_k = columns.load(key_ref, K, row, head), columns.load(value_ref, K, row, head)
        keys_ck = tuple(jnp.where(is_new_c1, new[None], old) for new, old in zip(key_k, keys_ck))
        values_ck = tuple(jnp.where(is_new_c1, new[None], old) for new, old in zip(value_k, values_ck))

        @pl.when((start <= position) & (position < start + PAGE))
        def _():
            columns.store(keys_ref, key_k, K, layer, page, head, position - start)
            columns.store(values_ref, value_k, K, layer, page, head, position - start)

        query_q = queries_ref[number, :]
        q_qk = columns.load(q_ref, K, jnp.minimum(query_q, rows - 1), head)
        scores_qc = columns.inner_products(q_qk, keys_ck) * columns.LOG2_E
        scores_qc = jnp.where((t_c <= position)[None, :], scores_qc, -jnp.inf)
        top_q = jnp.maximum(scores_qc.max(1), columns.START)
        weights_qc = jnp.exp2(scores_qc - top_q[:, None])
        out_qk = columns.add_weighted(columns.zeros_like(q_qk), weights_qc, values_ck)
        columns.store(out_ref, out_qk, K, query_q, index, head)
        triton.store(top_ref.at[query_q, index, head], top_q)
        triton.store(sum_ref.at[query_q, index, head], weights_qc.sum(1))
        return carry

    jax.lax.fori_loop(0, pl.cdiv(count_ref[0] - first, programs), read, 0)


def _sum_kernel(pages_ref, out_ref, top_ref, sum_ref, result_ref, *, K):
    row, head = pl.program_id(0), pl.program_id(1)
    used_s = jnp.arange(out_ref.shape[1]) < pages_ref[row]
    top_s = triton.load(top_ref.at[row, :, head], mask=used_s, other=columns.START)
    sum_s = triton.load(sum_ref.at[row, :, head], mask=used_s, other=0)
    weight_s = jnp.exp2(top_s - top_s.max())
    total = (weight_s * sum_s).sum()
    scale_s = weight_s / jnp.where(total > 0, total, 1.0)
    parts_sk = columns.load(out_ref, K, row, slice(None), head, mask=used_s)
    columns.store(result_ref, ((x * scale_s[:, None]).sum(0) for x in parts_sk), K, row, head)

"""Attention of one new token per row over a KV cache in pages, on GPUs: two Triton kernels.

A page holds the keys and values of `PAGE` consecutive positions of a row. Each is read by one program of the first
kernel (Flash-Decoding, Dao et al. 2023), and only if the row has come so far. A page that several rows have in common
(an instruction, demonstrations) is read once for up to `QUERIES` of them. The first kernel also writes the new keys and
values, in place; the second one sums the pages of each row.

Y: pages of the cache, S: pages per row at most, I: reads, Q: rows that share a read.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optiml_jax.model import sharding
from optiml_jax.model.triton_call import SMALLEST, column_groups, triton_call

QUERIES = SMALLEST  # Q: Triton's products have no fewer rows, so that sharing costs nothing
PROGRAMS = 1024  # of the first kernel: as many as the largest GPUs run at once; each reads page after page
PAGE = 64  # positions
READ_WARPS = 4
READ_STAGES = {2: 2, 4: 1}  # by bytes per number; two stages of float32 would not fit an RTX 4090
KERNELS = "optiml_jax.inference.cache_attention_kernels"


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
      interpret: runs the kernels in Triton's interpreter, on CPUs.

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
    S = 1 << (len(row_I) // B - 1).bit_length()
    programs = min(len(row_I), -(-(QUERIES if interpret else PROGRAMS) // H))
    f32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    # Row B takes what the free places of `queries_IQ` would write.
    parts = f32((B + 1, S, H, K)), f32((B + 1, S, H)), f32((B + 1, S, H))
    sizes = {"S": S, "H": H, "K": K, **column_groups(K)}
    *cache_NYHCK, out_BSHK, top_BSH, sum_BSH = triton_call(
        KERNELS,
        "cache_attention_read",
        (
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
        ),
        parts,
        grid=(H, programs),
        constants={
            **sizes,
            "ROWS": B,
            "PAGES": keys_NYHCK.shape[1],
            "PAGE": PAGE,
            "QUERIES": QUERIES,
            "PROGRAMS": programs,
        },
        warps=READ_WARPS,
        stages=READ_STAGES[keys_NYHCK.dtype.itemsize],
        updated=(10, 11),
        interpret=interpret,
    )
    (out_BHK,) = triton_call(
        KERNELS,
        "cache_attention_sum",
        (pages_B, out_BSHK, top_BSH, sum_BSH),
        [jax.ShapeDtypeStruct(q_BHK.shape, q_BHK.dtype)],
        grid=(B, H),
        constants=sizes,
        warps=1,
        stages=1,
        interpret=interpret,
    )
    return out_BHK, tuple(cache_NYHCK)

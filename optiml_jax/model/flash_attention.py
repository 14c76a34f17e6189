"""Attention on GPUs: one Pallas-Triton kernel forward and two backward, which skip blocks outside a document.

FlashAttention-2 (Dao 2023), with one integer per key instead of a mask (`visibility.py`). A block of queries visits the
keys from the start of its first document to the diagonal, except for branches that have ended; a block of keys is
visited by the queries up to its last `until`: with OPT-IML's short documents an eighth to a quarter of all pairs.
Scores and sums are float32. Attention weights have no dropout, as in OPT-IML's training code.

b is a position in a block of queries, c one in a block of keys, k a group of columns of a head (`columns.py`).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from optiml_jax.model import columns, visibility

RESULTS = ("attention_output", "attention_log_sum")  # a remat policy that saves these runs the forward kernel once


@dataclasses.dataclass(frozen=True)
class Tile:
    """Tiling of one kernel: rows and columns of a block of scores, warps per program, pipeline stages."""

    queries: int
    keys: int
    warps: int
    stages: int


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Tilings of the three kernels."""

    forward: Tile
    d_query: Tile
    d_key: Tile


# By head size (rounded up to the next of these) and bytes per number. For two bytes: the fastest of up to 84 tilings on
# packed rows on an H200; all fit A100, RTX 4090 and H200.
TILES = {
    (64, 2): Tiles(Tile(64, 64, 4, 2), Tile(64, 64, 4, 2), Tile(64, 64, 4, 3)),
    (80, 2): Tiles(Tile(64, 64, 4, 2), Tile(64, 64, 4, 2), Tile(64, 64, 4, 3)),
    (128, 2): Tiles(Tile(64, 64, 4, 3), Tile(64, 64, 4, 2), Tile(64, 64, 4, 2)),
    (64, 4): Tiles(Tile(64, 32, 4, 2), Tile(32, 32, 4, 2), Tile(32, 32, 4, 2)),
    (128, 4): Tiles(Tile(32, 32, 4, 2), Tile(32, 32, 4, 2), Tile(32, 32, 4, 2)),
}


def flash_attention(
    q_BTHK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHK: jax.Array,
    first_BT: jax.Array,
    until_BT: jax.Array,
    shared_prefixes: bool = False,
    tiles: Tiles | None = None,
    interpret: bool = False,
) -> jax.Array:
    """As `attention.attention`, for heads of up to 128.

    Args:
      first_BT, until_BT: of `visibility.visible`.
      shared_prefixes: whether documents share prefixes. The kernels then look for blocks of other branches and skip
        them, which would only cost time where they do not.
      tiles: None takes the table's.
      interpret: runs the kernels as XLA operations, on any device.

    Raises:
      ValueError: the heads are too wide.
    """
    T, K = q_BTHK.shape[1], q_BTHK.shape[3]
    fitting = [size for size, width in TILES if size >= K and width == q_BTHK.dtype.itemsize]
    if not fitting:
        raise ValueError(f"attention implementation 'pallas' supports heads of up to 128, not {K}; choose 'dense'")
    tiles = tiles or TILES[min(fitting), q_BTHK.dtype.itemsize]
    longest = max(columns.SMALLEST, pl.next_power_of_2(T))
    tiles = Tiles(*(_shrink(getattr(tiles, field.name), longest) for field in dataclasses.fields(Tiles)))
    block = max(max(tile.queries, tile.keys) for tile in (tiles.forward, tiles.d_query, tiles.d_key))
    padding = -T % block
    first_BT, until_BT = visibility.pad(first_BT, until_BT, padding)
    q_BTHK, k_BTHK, v_BTHK = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (q_BTHK, k_BTHK, v_BTHK))
    return _attend(q_BTHK, k_BTHK, v_BTHK, first_BT, until_BT, tiles, shared_prefixes, interpret)[:, :T]


def _shrink(tile: Tile, longest: int) -> Tile:
    return dataclasses.replace(tile, queries=min(tile.queries, longest), keys=min(tile.keys, longest))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _attend(q_BTHK, k_BTHK, v_BTHK, first_BT, until_BT, tiles, shared_prefixes, interpret):
    return _forward(q_BTHK, k_BTHK, v_BTHK, first_BT, until_BT, tiles, shared_prefixes, interpret)[0]


def _forward(q_BTHK, k_BTHK, v_BTHK, first_BT, until_BT, tiles, shared_prefixes, interpret):
    B, T, H, _ = q_BTHK.shape
    call = _Call(q_BTHK.shape, tiles.forward, interpret)
    out_BTHK, log_sum_BHT = call(
        functools.partial(_forward_kernel, shared_prefixes=shared_prefixes),
        "attention_forward",
        tiles.forward.queries,
        inputs=[
            (q_BTHK, call.block),
            (k_BTHK, call.row),
            (v_BTHK, call.row),
            (first_BT, call.ids),
            (until_BT, call.ids),
        ],
        outputs=[(q_BTHK, call.block), (jax.ShapeDtypeStruct((B, H, T), jnp.float32), call.block_sums)],
    )
    out_BTHK, log_sum_BHT = map(checkpoint_name, (out_BTHK, log_sum_BHT), RESULTS)
    return out_BTHK, (q_BTHK, k_BTHK, v_BTHK, first_BT, until_BT, out_BTHK, log_sum_BHT)


def _backward(tiles, shared_prefixes, interpret, residuals, d_out_BTHK):
    q_BTHK, k_BTHK, v_BTHK, first_BT, until_BT, out_BTHK, log_sum_BHT = residuals
    # sum over keys of weight * d_weight, from the output alone (Dao et al. 2022, section B.2)
    inner_BHT = jnp.einsum("bthk,bthk->bht", d_out_BTHK.astype(jnp.float32), out_BTHK.astype(jnp.float32))
    arguments = q_BTHK, k_BTHK, v_BTHK, d_out_BTHK, log_sum_BHT, inner_BHT, first_BT, until_BT
    return (
        _d_query(*arguments, tiles.d_query, shared_prefixes, interpret),
        *_d_key(*arguments, tiles.d_key, interpret),
        None,
        None,
    )


def _d_query(
    q_BTHK, k_BTHK, v_BTHK, d_out_BTHK, log_sum_BHT, inner_BHT, first_BT, until_BT, tile, shared_prefixes, interpret
):
    call = _Call(q_BTHK.shape, tile, interpret)
    (dq_BTHK,) = call(
        functools.partial(_d_query_kernel, shared_prefixes=shared_prefixes),
        "attention_d_query",
        tile.queries,
        inputs=[
            (q_BTHK, call.block),
            (k_BTHK, call.row),
            (v_BTHK, call.row),
            (d_out_BTHK, call.block),
            (log_sum_BHT, call.block_sums),
            (inner_BHT, call.block_sums),
            (first_BT, call.ids),
            (until_BT, call.ids),
        ],
        outputs=[(q_BTHK, call.block)],
    )
    return dq_BTHK


def _d_key(q_BTHK, k_BTHK, v_BTHK, d_out_BTHK, log_sum_BHT, inner_BHT, _, until_BT, tile, interpret):
    call = _Call(q_BTHK.shape, tile, interpret)
    return call(
        _d_key_kernel,
        "attention_d_key",
        tile.keys,
        inputs=[
            (q_BTHK, call.row),
            (k_BTHK, call.block),
            (v_BTHK, call.block),
            (d_out_BTHK, call.row),
            (log_sum_BHT, call.row_sums),
            (inner_BHT, call.row_sums),
            (until_BT, call.ids),
        ],
        outputs=[(k_BTHK, call.block), (v_BTHK, call.block)],
    )


_attend.defvjp(_forward, _backward)


class _Call:
    """A kernel over a grid of (block, row of the batch, head), and the part of each array that a program sees."""

    def __init__(self, shape, tile, interpret):
        self._B, self._T, self._H, self._K = shape
        self._width = sum(columns.groups(self._K)[-1])
        self._tile, self._interpret = tile, interpret

    def block(self, size):  # of [B, T, H, K]
        return pl.BlockSpec((None, size, None, self._width), lambda i, b, h: (b, i, h, 0))

    def row(self, _):
        return pl.BlockSpec((None, self._T, None, self._width), lambda i, b, h: (b, 0, h, 0))

    def block_sums(self, size):  # of [B, H, T]
        return pl.BlockSpec((None, None, size), lambda i, b, h: (b, h, i))

    def row_sums(self, _):
        return pl.BlockSpec((None, None, self._T), lambda i, b, h: (b, h, 0))

    def ids(self, _):  # of [B, T]
        return pl.BlockSpec((None, self._T), lambda i, b, h: (b, 0))

    def __call__(self, kernel, name, size, inputs, outputs):
        """Runs the kernel; `size` is the number of positions of a program's own block."""
        return pl.pallas_call(
            functools.partial(kernel, tile=self._tile, K=self._K),
            grid=(self._T // size, self._B, self._H),
            in_specs=[see(size) for _, see in inputs],
            out_specs=[see(size) for _, see in outputs],
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in outputs],
            compiler_params=triton.CompilerParams(num_warps=self._tile.warps, num_stages=self._tile.stages),
            interpret=self._interpret,
            name=name,
        )(*(x for x, _ in inputs))


def _skip_ended_branches(add, start, until_ref, tile, shared_prefixes):
    """Wraps `add` to skip blocks of keys that no query from `start` on attends to: those of branches that have
    ended."""
    if not shared_prefixes:
        return add

    def add_if_visible(j, sums):
        visible = until_ref[pl.ds(j * tile.keys, tile.keys)].max() > start
        return jax.lax.cond(visible, add, lambda _, sums: sums, j, sums)

    return add_if_visible


def _forward_kernel(q_ref, k_ref, v_ref, first_ref, until_ref, out_ref, log_sum_ref, *, tile, K, shared_prefixes):
    start = pl.program_id(0) * tile.queries
    t_b = start + jnp.arange(tile.queries)
    q_bk = columns.load(q_ref, K)

    def add(j, sums):
        top_b, scale_b, out_bk = sums
        keys = pl.ds(j * tile.keys, tile.keys)
        s_c = j * tile.keys + jnp.arange(tile.keys)
        sees_bc = visibility.sees(t_b[:, None], s_c[None, :], until_ref[keys][None, :])
        scores_bc = jnp.where(
            sees_bc, columns.inner_products(q_bk, columns.load(k_ref, K, keys)) * columns.LOG2_E, -jnp.inf
        )
        new_top_b = jnp.maximum(top_b, scores_bc.max(1))
        weights_bc = jnp.exp2(scores_bc - new_top_b[:, None])
        shrink_b = jnp.exp2(top_b - new_top_b)
        out_bk = columns.add_weighted((x * shrink_b[:, None] for x in out_bk), weights_bc, columns.load(v_ref, K, keys))
        return new_top_b, scale_b * shrink_b + weights_bc.sum(1), out_bk

    initial = jnp.full(tile.queries, columns.START), jnp.zeros(tile.queries), columns.zeros_like(q_bk)
    blocks = first_ref[start] // tile.keys, pl.cdiv(start + tile.queries, tile.keys)
    top_b, scale_b, out_bk = jax.lax.fori_loop(
        *blocks, _skip_ended_branches(add, start, until_ref, tile, shared_prefixes), initial
    )
    columns.store(out_ref, (x / scale_b[:, None] for x in out_bk), K)
    log_sum_ref[...] = top_b + jnp.log2(scale_b)


def _d_query_kernel(
    q_ref, k_ref, v_ref, d_out_ref, log_sum_ref, inner_ref, first_ref, until_ref, dq_ref, *, tile, K, shared_prefixes
):
    start = pl.program_id(0) * tile.queries
    t_b = start + jnp.arange(tile.queries)
    q_bk, d_out_bk = columns.load(q_ref, K), columns.load(d_out_ref, K)
    log_sum_b, inner_b = log_sum_ref[...], inner_ref[...]

    def add(j, dq_bk):
        keys = pl.ds(j * tile.keys, tile.keys)
        s_c = j * tile.keys + jnp.arange(tile.keys)
        sees_bc = visibility.sees(t_b[:, None], s_c[None, :], until_ref[keys][None, :])
        k_ck = columns.load(k_ref, K, keys)
        scores_bc = columns.inner_products(q_bk, k_ck) * columns.LOG2_E
        weights_bc = jnp.where(sees_bc, jnp.exp2(scores_bc - log_sum_b[:, None]), 0.0)
        d_weights_bc = columns.inner_products(d_out_bk, columns.load(v_ref, K, keys))
        d_scores_bc = weights_bc * (d_weights_bc - inner_b[:, None])
        return columns.add_weighted(dq_bk, d_scores_bc, k_ck)

    blocks = first_ref[start] // tile.keys, pl.cdiv(start + tile.queries, tile.keys)
    add = _skip_ended_branches(add, start, until_ref, tile, shared_prefixes)
    columns.store(dq_ref, jax.lax.fori_loop(*blocks, add, columns.zeros_like(q_bk)), K)


def _d_key_kernel(q_ref, k_ref, v_ref, d_out_ref, log_sum_ref, inner_ref, until_ref, dk_ref, dv_ref, *, tile, K):
    start = pl.program_id(0) * tile.keys
    s_c = start + jnp.arange(tile.keys)
    until_c = until_ref[pl.ds(start, tile.keys)]
    k_ck, v_ck = columns.load(k_ref, K), columns.load(v_ref, K)

    def add(i, sums):
        dk_ck, dv_ck = sums
        queries = pl.ds(i * tile.queries, tile.queries)
        t_b = i * tile.queries + jnp.arange(tile.queries)
        sees_cb = visibility.sees(t_b[None, :], s_c[:, None], until_c[:, None])
        q_bk, d_out_bk = columns.load(q_ref, K, queries), columns.load(d_out_ref, K, queries)
        scores_cb = columns.inner_products(k_ck, q_bk) * columns.LOG2_E
        weights_cb = jnp.where(sees_cb, jnp.exp2(scores_cb - log_sum_ref[queries][None, :]), 0.0)
        dv_ck = columns.add_weighted(dv_ck, weights_cb, d_out_bk)
        d_weights_cb = columns.inner_products(v_ck, d_out_bk)
        d_scores_cb = weights_cb * (d_weights_cb - inner_ref[queries][None, :])
        return columns.add_weighted(dk_ck, d_scores_cb, q_bk), dv_ck

    blocks = start // tile.queries, pl.cdiv(until_c.max(), tile.queries)
    dk_ck, dv_ck = jax.lax.fori_loop(*blocks, add, (columns.zeros_like(k_ck), columns.zeros_like(v_ck)))
    columns.store(dk_ref, dk_ck, K)
    columns.store(dv_ref, dv_ck, K)

"""Attention on GPUs: one Triton kernel forward and two backward, which skip blocks outside a document.

FlashAttention-2 (Dao 2023), with one integer per key instead of a mask (`visibility.py`). A block of queries visits the
keys from the start of its first document to the diagonal, except for branches that have ended; a block of keys is
visited by the queries up to its last `until`: with OPT-IML's short documents an eighth to a quarter of all pairs.
Scores and sums are float32. Attention weights have no dropout, as in OPT-IML's training code.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from optiml_jax.model import visibility
from optiml_jax.model.triton_call import SMALLEST, column_groups, triton_call

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
      interpret: runs the kernels in Triton's interpreter, on CPUs.

    Raises:
      ValueError: the heads are too wide.
    """
    T, K = q_BTHK.shape[1], q_BTHK.shape[3]
    fitting = [size for size, width in TILES if size >= K and width == q_BTHK.dtype.itemsize]
    if not fitting:
        raise ValueError(f"attention implementation 'triton' supports heads of up to 128, not {K}; choose 'dense'")
    tiles = tiles or TILES[min(fitting), q_BTHK.dtype.itemsize]
    longest = max(SMALLEST, 1 << (T - 1).bit_length())
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
    out_BTHK, log_sum_BHT = _call(
        "attention_forward",
        tiles.forward,
        tiles.forward.queries,
        (q_BTHK, k_BTHK, v_BTHK, first_BT, until_BT),
        [q_BTHK, jax.ShapeDtypeStruct((B, H, T), jnp.float32)],
        interpret,
        SHARED=shared_prefixes,
    )
    out_BTHK, log_sum_BHT = map(checkpoint_name, (out_BTHK, log_sum_BHT), RESULTS)
    return out_BTHK, (q_BTHK, k_BTHK, v_BTHK, first_BT, until_BT, out_BTHK, log_sum_BHT)


def _backward(tiles, shared_prefixes, interpret, residuals, d_out_BTHK):
    q_BTHK, k_BTHK, v_BTHK, first_BT, until_BT, out_BTHK, log_sum_BHT = residuals
    # sum over keys of weight * d_weight, from the output alone (Dao et al. 2022, section B.2)
    inner_BHT = jnp.einsum("bthk,bthk->bht", d_out_BTHK.astype(jnp.float32), out_BTHK.astype(jnp.float32))
    arrays = q_BTHK, k_BTHK, v_BTHK, d_out_BTHK, log_sum_BHT, inner_BHT
    (dq_BTHK,) = _call(
        "attention_d_query",
        tiles.d_query,
        tiles.d_query.queries,
        (*arrays, first_BT, until_BT),
        [q_BTHK],
        interpret,
        SHARED=shared_prefixes,
    )
    dk_BTHK, dv_BTHK = _call(
        "attention_d_key", tiles.d_key, tiles.d_key.keys, (*arrays, until_BT), [k_BTHK, v_BTHK], interpret
    )
    return dq_BTHK, dk_BTHK, dv_BTHK, None, None


_attend.defvjp(_forward, _backward)


def _call(name, tile, block, inputs, outputs, interpret, **constants):
    """Runs a kernel of which each program computes `block` positions of one head; outputs are like those given."""
    B, T, H, K = inputs[0].shape
    return triton_call(
        "optiml_jax.model.attention_kernels",
        name,
        inputs,
        [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
        grid=(T // block, B, H),
        constants={"T": T, "H": H, "K": K, "QUERIES": tile.queries, "KEYS": tile.keys, **column_groups(K), **constants},
        warps=tile.warps,
        stages=tile.stages,
        interpret=interpret,
    )

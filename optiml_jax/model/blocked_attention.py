"""Blocked attention in plain JAX: exact, linear in memory, skips blocks outside a document. The CPU implementation.

For each block of queries, a loop with a running softmax (Dao et al. 2022, algorithm 1) visits the blocks of keys that
any of them attends to; blocks of other documents, and of other branches of a shared prefix, are skipped. With OPT-IML's
short documents an eighth to a quarter of the pairs remain.
"""

import functools

import jax
import jax.numpy as jnp

from optiml_jax.model.visibility import pad, sees

BLOCK = 64  # of 32 to 256, the fastest at 512 and 2,048 positions with the accuracy of the dense form
NEVER = -1e30  # score of a masked pair: exp gives 0, and differences are not NaN as they would be for infinities


def blocked_attention(
    q_BTHK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHK: jax.Array,
    first_BT: jax.Array,
    until_BT: jax.Array,
    block: int = BLOCK,
) -> jax.Array:
    """As `attention.attention`; softmax in float32. b is a position in a block, n a block of a row.

    Args:
      first_BT, until_BT: of `visibility.visible`.
    """
    T = q_BTHK.shape[1]
    block = min(block, T)
    _, until_BT = pad(first_BT, until_BT, -T % block)
    split = functools.partial(_split, block=block)
    until_Bnb = split(until_BT)
    rows = (split(q_BTHK), split(k_BTHK), split(v_BTHK), until_Bnb, *_visible_blocks(until_Bnb))
    out_BnHbK = jax.lax.map(lambda row: _row_attention(*row), rows)
    return _join(out_BnHbK)[:, :T]


def _split(x, block):
    """[B, T, H, K] -> [B, n, H, b, K]; [B, T] -> [B, n, b]. T is padded to a multiple of the block."""
    B, T = x.shape[:2]
    x = jnp.pad(x, ((0, 0), (0, -T % block), *((0, 0),) * (x.ndim - 2)))
    x = x.reshape(B, -1, block, *x.shape[2:])
    return x.swapaxes(2, 3) if x.ndim == 5 else x


def _visible_blocks(until_Bnb):
    """Key blocks that each query block attends to, itself first, int32 [B, n, n], and their number, [B, n]."""
    n, b = until_Bnb.shape[1:]
    count_n = jnp.arange(n, dtype=jnp.int32)
    back_nn = count_n[:, None] - count_n
    seen_Bnn = (back_nn >= 0) & (until_Bnb.max(-1)[:, None] > count_n[:, None] * b)
    return jnp.argsort(jnp.where(seen_Bnn, back_nn, n), axis=-1).astype(jnp.int32), seen_Bnn.sum(-1, dtype=jnp.int32)


def _join(x_BnHbK):
    B, n, H, b, K = x_BnHbK.shape
    return x_BnHbK.swapaxes(2, 3).reshape(B, n * b, H, K)


@jax.custom_vjp
def _row_attention(q_nHbK, k_nHbK, v_nHbK, until_nb, seen_nn, seen_n):
    return _row_forward(q_nHbK, k_nHbK, v_nHbK, until_nb, seen_nn, seen_n)[0]


def _scores(q_HbK, k_HbK, until_nb, i, j):
    """Float32 scores [H, b, b] of query block i against key block j; `NEVER` where masked."""
    count_b = jnp.arange(q_HbK.shape[1])
    query_b, key_b = i * len(count_b) + count_b, j * len(count_b) + count_b
    allowed_bb = sees(query_b[:, None], key_b, until_nb[j])
    scores_Hbb = jnp.einsum("hqk,hsk->hqs", q_HbK, k_HbK, preferred_element_type=jnp.float32)
    return jnp.where(allowed_bb, scores_Hbb, NEVER)


def _row_forward(q_nHbK, k_nHbK, v_nHbK, until_nb, seen_nn, seen_n):
    def query_block(i):
        q_HbK = q_nHbK[i]

        def add(index, sums):
            top_Hb, scale_Hb, out_HbK = sums
            j = seen_nn[i, index]
            scores_Hbb = _scores(q_HbK, k_nHbK[j], until_nb, i, j)
            new_top_Hb = jnp.maximum(top_Hb, scores_Hbb.max(-1))
            weights_Hbb = jnp.exp(scores_Hbb - new_top_Hb[..., None])
            shrink_Hb = jnp.exp(top_Hb - new_top_Hb)
            scale_Hb = scale_Hb * shrink_Hb + weights_Hbb.sum(-1)
            added_HbK = jnp.einsum(
                "hqs,hsk->hqk", weights_Hbb.astype(v_nHbK.dtype), v_nHbK[j], preferred_element_type=jnp.float32
            )
            return new_top_Hb, scale_Hb, out_HbK * shrink_Hb[..., None] + added_HbK

        shape_Hb = q_HbK.shape[:2]
        # The diagonal block comes first: there every query attends to itself, so the running maximum is finite.
        sums = add(0, (jnp.full(shape_Hb, NEVER), jnp.zeros(shape_Hb), jnp.zeros(q_HbK.shape, jnp.float32)))
        top_Hb, scale_Hb, out_HbK = jax.lax.fori_loop(1, seen_n[i], add, sums)
        return (out_HbK / scale_Hb[..., None]).astype(q_HbK.dtype), top_Hb + jnp.log(scale_Hb)

    out_nHbK, log_scale_nHb = jax.lax.map(query_block, jnp.arange(q_nHbK.shape[0]))
    return out_nHbK, (q_nHbK, k_nHbK, v_nHbK, until_nb, seen_nn, seen_n, out_nHbK, log_scale_nHb)


def _row_backward(residuals, d_out_nHbK):
    q_nHbK, k_nHbK, v_nHbK, until_nb, seen_nn, seen_n, out_nHbK, log_scale_nHb = residuals
    f32 = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def query_block(sums, i):
        q_HbK, d_out_HbK = q_nHbK[i], d_out_nHbK[i]
        # sum over keys of weight * d_weight, from the output alone (Dao et al. 2022, section B.2)
        inner_Hb = (d_out_HbK.astype(jnp.float32) * out_nHbK[i].astype(jnp.float32)).sum(-1)

        def add(index, sums):
            dq_HbK, dk_nHbK, dv_nHbK = sums
            j = seen_nn[i, index]
            scores_Hbb = _scores(q_HbK, k_nHbK[j], until_nb, i, j)
            weights_Hbb = jnp.exp(scores_Hbb - log_scale_nHb[i][..., None])
            d_weights_Hbb = f32("hqk,hsk->hqs", d_out_HbK, v_nHbK[j])
            d_scores_Hbb = (weights_Hbb * (d_weights_Hbb - inner_Hb[..., None])).astype(q_HbK.dtype)
            dv_HbK = f32("hqs,hqk->hsk", weights_Hbb.astype(q_HbK.dtype), d_out_HbK)
            dk_HbK = f32("hqs,hqk->hsk", d_scores_Hbb, q_HbK)
            dq_HbK += f32("hqs,hsk->hqk", d_scores_Hbb, k_nHbK[j])
            return dq_HbK, dk_nHbK.at[j].add(dk_HbK), dv_nHbK.at[j].add(dv_HbK)

        zeros_HbK = jnp.zeros(q_HbK.shape, jnp.float32)
        dq_HbK, *sums = jax.lax.fori_loop(0, seen_n[i], add, (zeros_HbK, *sums))
        return tuple(sums), dq_HbK

    zeros = (jnp.zeros(k_nHbK.shape, jnp.float32), jnp.zeros(v_nHbK.shape, jnp.float32))
    (dk_nHbK, dv_nHbK), dq_nHbK = jax.lax.scan(query_block, zeros, jnp.arange(q_nHbK.shape[0]))
    return dq_nHbK.astype(q_nHbK.dtype), dk_nHbK.astype(k_nHbK.dtype), dv_nHbK.astype(v_nHbK.dtype), None, None, None


_row_attention.defvjp(_row_forward, _row_backward)

"""Token embeddings from a table whose rows are sharded over `tensor`: each device contributes the rows it holds.

By itself the partitioner gathers the whole table for a lookup, and distributes the gradient with all-to-alls.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from optiml_jax.model import sharding

ROWS = sharding.BATCH_AXES
TABLE = P("tensor", None)
RESIDUAL = P(ROWS, "tensor", None)  # the sharding between blocks


def look_up(embedding_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    """`embedding_VD[tokens_BT]`, with the sharding used between blocks.

    Args:
      embedding_VD: in the compute dtype (`decoder.gathered_embedding`).
      tokens_BT: int32, each below V.

    Returns:
      [B, T, D]. Under a mesh, B must divide over the batch axes and T over tensor; other shapes (a decoding step of one
      token) are left to the partitioner, which moves more data.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    if not sizes or tokens_BT.shape[0] % sharding.batch_parts(sizes) or tokens_BT.shape[1] % sizes["tensor"]:
        return embedding_VD[tokens_BT]
    return _look_up(embedding_VD, tokens_BT)


@jax.custom_vjp
def _look_up(embedding_VD, tokens_BT):
    def body(embedding_VD, tokens_BT):
        index_BT, local_BT = _local_indices(embedding_VD.shape[0], tokens_BT)
        x_BTD = jnp.where(local_BT[..., None], embedding_VD[jnp.where(local_BT, index_BT, 0)], 0)
        # One device holds the row and the others add zeros: exact in any dtype.
        return jax.lax.psum_scatter(x_BTD, "tensor", scatter_dimension=1, tiled=True)

    mapped = jax.shard_map(body, in_specs=(TABLE, P(ROWS, None)), out_specs=RESIDUAL, check_vma=False)
    return mapped(embedding_VD, tokens_BT)


def _forward(embedding_VD, tokens_BT):
    return _look_up(embedding_VD, tokens_BT), (embedding_VD, tokens_BT)


def _backward(residuals, d_x_BTD):
    embedding_VD, tokens_BT = residuals
    V, D = embedding_VD.shape

    def body(tokens_BT, d_x_BTD):
        d_x_BTD = jax.lax.all_gather(d_x_BTD, "tensor", axis=1, tiled=True)
        local_V = V // jax.lax.axis_size("tensor")
        index_BT, local_BT = _local_indices(local_V, tokens_BT)
        # Float32, because a frequent token accumulates thousands of terms.
        sums_VD = jnp.zeros((local_V, D), jnp.float32)
        sums_VD = sums_VD.at[jnp.where(local_BT, index_BT, local_V)].add(d_x_BTD.astype(jnp.float32), mode="drop")
        # Scattered to the optimizer's shards, as in `head.py`.
        sums_VD = jax.lax.psum_scatter(sums_VD, "fsdp", scatter_dimension=1, tiled=True)
        return jax.lax.psum(sums_VD, "data").astype(embedding_VD.dtype)

    specs = (P(ROWS, None), RESIDUAL)
    mapped = jax.shard_map(body, in_specs=specs, out_specs=P("tensor", "fsdp"), check_vma=False)
    return mapped(tokens_BT, d_x_BTD), None


_look_up.defvjp(_forward, _backward)


def _local_indices(local_V, tokens_BT):
    """Row of each token in this device's part of the table, and whether it is there."""
    index_BT = tokens_BT - jax.lax.axis_index("tensor") * local_V
    return index_BT, (index_BT >= 0) & (index_BT < local_V)

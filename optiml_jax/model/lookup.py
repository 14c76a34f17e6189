"""Token embeddings from a table whose rows lie on the devices of `tensor`: each gives those it has.

Left to itself, the partitioner gathers the whole table to look tokens up, and spreads the gradient with all-to-alls.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from optiml_jax.model import sharding

ROWS = sharding.BATCH_AXES
TABLE = P("tensor", None)
RESIDUAL = P(ROWS, "tensor", None)  # as between blocks


def look_up(embedding_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    """`embedding_VD[tokens_BT]`, sharded over T as between blocks.

    Args:
      embedding_VD: in the compute dtype (`decoder.gathered_embedding`).
      tokens_BT: int32, each below V.

    Returns:
      [B, T, D]. Under a mesh, B divides into the batch's parts and T over tensor; other shapes (a decoding step of one
      token) are left to the partitioner, which moves more.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    if not sizes or tokens_BT.shape[0] % sharding.batch_parts(sizes) or tokens_BT.shape[1] % sizes["tensor"]:
        return embedding_VD[tokens_BT]
    return _look_up(embedding_VD, tokens_BT)


@jax.custom_vjp
def _look_up(embedding_VD, tokens_BT):
    def body(embedding_VD, tokens_BT):
        place_BT, here_BT = _local_places(embedding_VD.shape[0], tokens_BT)
        x_BTD = jnp.where(here_BT[..., None], embedding_VD[jnp.where(here_BT, place_BT, 0)], 0)
        # One device has the row and the others add zeros: exact in any dtype.
        return jax.lax.psum_scatter(x_BTD, "tensor", scatter_dimension=1, tiled=True)

    mapped = jax.shard_map(body, in_specs=(TABLE, P(ROWS, None)), out_specs=RESIDUAL, check_vma=False)
    return mapped(embedding_VD, tokens_BT)


def _forward(embedding_VD, tokens_BT):
    return _look_up(embedding_VD, tokens_BT), (embedding_VD, tokens_BT)


def _backward(kept, d_x_BTD):
    embedding_VD, tokens_BT = kept
    V, D = embedding_VD.shape

    def body(tokens_BT, d_x_BTD):
        d_x_BTD = jax.lax.all_gather(d_x_BTD, "tensor", axis=1, tiled=True)
        local_V = V // jax.lax.axis_size("tensor")
        place_BT, here_BT = _local_places(local_V, tokens_BT)
        # Float32, since a frequent token adds up thousands of terms.
        sums_VD = jnp.zeros((local_V, D), jnp.float32)
        sums_VD = sums_VD.at[jnp.where(here_BT, place_BT, local_V)].add(d_x_BTD.astype(jnp.float32), mode="drop")
        # Straight to the shards that the optimizer holds, as in `head.py`.
        sums_VD = jax.lax.psum_scatter(sums_VD, "fsdp", scatter_dimension=1, tiled=True)
        return jax.lax.psum(sums_VD, "data").astype(embedding_VD.dtype)

    specs = (P(ROWS, None), RESIDUAL)
    mapped = jax.shard_map(body, in_specs=specs, out_specs=P("tensor", "fsdp"), check_vma=False)
    return mapped(tokens_BT, d_x_BTD), None


_look_up.defvjp(_forward, _backward)


def _local_places(local_V, tokens_BT):
    """Where tokens are in this device's part of the table, and whether they are there."""
    place_BT = tokens_BT - jax.lax.axis_index("tensor") * local_V
    return place_BT, (place_BT >= 0) & (place_BT < local_V)

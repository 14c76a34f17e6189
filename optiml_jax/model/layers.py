"""Parameters of the blocks: an array stacked over layers, or one array per layer.

Training stacks layers, so that a scan compiles one block. Inference on GPUs keeps them apart: a matrix product reads
the array of a layer where it is, but a slice of a stacked array would first be copied, at every step of decoding.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, Sharding


@jax.tree_util.register_pytree_with_keys_class
class Layers(tuple):
    """The arrays of one parameter, one per layer, with the shape and the indexing of the stacked array."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self[0].shape)

    @property
    def dtype(self) -> jnp.dtype:
        return self[0].dtype

    def tree_flatten_with_keys(self) -> tuple[Any, None]:
        return [(jax.tree_util.SequenceKey(index), array) for index, array in enumerate(self)], None

    @classmethod
    def tree_unflatten(cls, _: None, arrays: Any) -> "Layers":
        return cls(arrays)


def is_separate(params: dict) -> bool:
    """Whether the blocks of a parameter tree have one array per layer."""
    return any(isinstance(leaf, Layers) for leaf in jax.tree.leaves(params["blocks"], is_leaf=is_layers))


def is_layers(leaf: Any) -> bool:
    """For `is_leaf`: paths and shapes are then those of stacked arrays."""
    return isinstance(leaf, Layers)


def separate(params: dict) -> dict:
    """Replaces the stacked arrays of the blocks, which may be `ShapeDtypeStruct`s, with one array per layer."""
    return params | {"blocks": jax.tree.map(split, params["blocks"])}


def split(stacked: jax.Array | jax.ShapeDtypeStruct, dtype: jnp.dtype | None = None) -> Layers:
    """Splits a stacked array into one array per layer, cast to `dtype` if it is given. The sharding stays the same."""
    dtype, sharding = dtype or stacked.dtype, layer_sharding(stacked.sharding)
    if isinstance(stacked, jax.ShapeDtypeStruct):
        shape = stacked.shape[1:]
        return Layers(jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for _ in range(stacked.shape[0]))
    return _split(sharding, stacked.shape[0], jnp.dtype(dtype))(stacked)


def layer_sharding(sharding: Sharding | None) -> Sharding | None:
    """The sharding of one layer, from that of the stacked array."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return sharding


@functools.cache
def _split(sharding: Sharding, count: int, dtype: jnp.dtype) -> Any:
    return jax.jit(
        lambda stacked: Layers(stacked[index].astype(dtype) for index in range(count)),
        out_shardings=Layers([sharding] * count),
    )


def each_layer(tree: Any, count: int) -> Iterator[Any]:
    """Yields a tree's slice for every layer; its leaves are stacked arrays or `Layers`.

    Stacked arrays are split at once: the gradient of that is one concatenation, while that of indexing would be a sum
    of whole stacked arrays.
    """
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_layers)
    parts = [leaf if is_layers(leaf) else [part[0] for part in jax.lax.split(leaf, [1] * count)] for leaf in leaves]
    for layer in zip(*parts):
        yield jax.tree.unflatten(structure, layer)

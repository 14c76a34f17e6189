"""Streams weights tensor by tensor into the sharding they will have; the host never holds a stacked leaf."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from optiml_jax.common.errors import UserError, nearest
from optiml_jax.model.config import OPTConfig
from optiml_jax.model.decoder import abstract_params
from optiml_jax.weights import names
from optiml_jax.weights.stored import FLOATS, Stored, Tensor

IGNORED = {"version"}  # a buffer of early conversions


def place(
    tensors: Mapping[str, Tensor], config: OPTConfig, shardings: dict | None, dtype: jnp.dtype, origin: str
) -> dict:
    """Parameters from tensors with Hugging Face's names, read one at a time in the order given.

    Args:
      shardings: a tree like the parameters'; None puts them on the first device.
      dtype: of the parameters; what is on disk is cast on the device.
      origin: names the source in errors.

    Raises:
      UserError: missing or surplus tensors, wrong shapes or dtypes, values that are not finite.
    """
    wanted = names.slots(config)
    found = _match(tensors, wanted, origin)
    leaves, structure = jax.tree_util.tree_flatten_with_path(abstract_params(config, dtype))
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = [device] * len(leaves) if shardings is None else structure.flatten_up_to(shardings)
    where = dict(zip(paths, placed))
    params: dict[str, Any] = {
        path: _zeros(leaf.shape, leaf.dtype, where[path]) if path.startswith("blocks/") else None
        for path, (_, leaf) in zip(paths, leaves)
    }
    shapes = {path: leaf.shape for path, (_, leaf) in zip(paths, leaves)}

    for name, tensor in found.items():
        slot = wanted[name]
        sharding = where[slot.path]
        # Sent as torch stores it: the device casts and transposes, quicker than the host and nothing is there twice.
        array = _to_devices(tensor.read(), _torch_sharding(sharding, slot, len(shapes[slot.path])))
        if slot.layer is None:
            params[slot.path], finite = _convert(sharding, slot.inputs, shapes[slot.path], dtype)(array)
        else:
            params[slot.path], finite = _write_layer(sharding, slot.inputs)(params[slot.path], array, slot.layer)
        if not finite:  # waits for the device, so that one tensor at a time is on the host
            raise UserError(f"{tensor.file}: tensor {name} holds NaN or infinite values (as {jnp.dtype(dtype).name})")
        del array
    return jax.tree_util.tree_unflatten(structure, [params[path] for path in paths])


def _match(tensors: Mapping[str, Tensor], wanted: Mapping[str, names.Slot], origin: str) -> dict[str, Tensor]:
    """Tensors by bare name, every one in its place and none left over."""
    found: dict[str, Tensor] = {}
    for full, tensor in tensors.items():
        name = names.bare(full)
        if name in found:
            raise UserError(f"{origin}: tensor {name} is there twice, once as {full}; keep one")
        if name not in IGNORED:
            found[name] = tensor
    head, embedding = found.pop(names.HEAD, None), found.get("embed_tokens.weight")
    if surplus := sorted(found.keys() - wanted.keys()):
        raise UserError(
            f"{origin}: tensor {surplus[0]} is not part of the configured model{nearest(surplus[0], wanted)}"
            + (f" ({len(surplus)} such tensors)" if len(surplus) > 1 else "")
        )
    if missing := sorted(wanted.keys() - found.keys()):
        raise UserError(
            f"{origin}: tensor {missing[0]} is missing" + (f" ({len(missing)} are)" if len(missing) > 1 else "")
        )
    for name, slot in wanted.items():
        if found[name].shape != slot.shape:
            raise UserError(
                f"{found[name].file}: tensor {name} has shape {found[name].shape}, the configuration wants {slot.shape}"
            )
        if found[name].dtype not in FLOATS.values():
            raise UserError(f"{found[name].file}: tensor {name} is {found[name].dtype}; weights are fp32, fp16 or bf16")
    if head is not None and not _same(head, embedding):
        raise UserError(f"{origin}: {names.HEAD} differs from embed_tokens.weight; an untied output is not supported")
    return found


def _same(head: Stored, embedding: Stored, chunk: int = 4_096) -> bool:
    """Equal to the bit, compared a few rows at a time."""
    if (head.shape, head.dtype) != (embedding.shape, embedding.dtype):
        return False
    if head == embedding:  # the same bytes of the same file
        return True
    return all(
        head.rows(start, start + chunk).read().tobytes() == embedding.rows(start, start + chunk).read().tobytes()
        for start in range(0, head.shape[0], chunk)
    )


def _torch_sharding(sharding: Sharding, slot: names.Slot, rank: int) -> Sharding:
    """The sharding of one tensor as torch stores it ([out, in], split axes joined, no layers), from its leaf's.

    Args:
      rank: of the leaf.
    """
    if not isinstance(sharding, NamedSharding):
        return sharding
    axes = [*sharding.spec, *[None] * (rank - len(sharding.spec))][slot.layer is not None :]
    if slot.inputs:
        axes = [axes[slot.inputs], axes[0]]  # of H and K, F or D the first alone is sharded
    return NamedSharding(sharding.mesh, PartitionSpec(*axes[: len(slot.shape)]))


def _to_devices(host: np.ndarray, sharding: Sharding) -> jax.Array:
    """Each device of this process takes its part."""
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


@functools.cache
def _zeros_function(shape: tuple[int, ...], dtype: jnp.dtype, sharding: Sharding) -> Any:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


def _zeros(shape: tuple[int, ...], dtype: jnp.dtype, sharding: Sharding) -> jax.Array:
    return _zeros_function(shape, dtype, sharding)()


@functools.cache
def _convert(sharding: Sharding, inputs: int, shape: tuple[int, ...], dtype: jnp.dtype) -> Any:
    def convert(tensor: jax.Array) -> tuple[jax.Array, jax.Array]:
        leaf = (tensor.T if inputs else tensor).reshape(shape).astype(dtype)
        return leaf, jnp.isfinite(jnp.abs(leaf).max())  # `all` would hold a flag for each element of the embedding

    return jax.jit(convert, out_shardings=(sharding, None))


@functools.cache
def _write_layer(sharding: Sharding, inputs: int) -> Any:
    def write(leaf: jax.Array, tensor: jax.Array, layer: jax.Array) -> tuple[jax.Array, jax.Array]:
        update = (tensor.T if inputs else tensor).reshape(leaf.shape[1:]).astype(leaf.dtype)
        return jax.lax.dynamic_update_index_in_dim(leaf, update, layer, 0), jnp.isfinite(update).all()

    return jax.jit(write, donate_argnums=0, out_shardings=(sharding, None))

"""Streams weights tensor by tensor into their sharding; the host never holds a stacked array."""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from optiml_jax.common.errors import UserError, nearest
from optiml_jax.model import int8
from optiml_jax.model.config import OPTConfig
from optiml_jax.model.decoder import abstract_params
from optiml_jax.model.fingerprint import fingerprint
from optiml_jax.model.layers import Layers, layer_sharding
from optiml_jax.weights import checksums, names
from optiml_jax.weights.stored import FLOATS, Stored, Tensor

IGNORED = {"version"}  # a buffer of early conversions


def place(
    tensors: Mapping[str, Tensor],
    config: OPTConfig,
    shardings: dict | None,
    dtype: jnp.dtype | dict,
    separate: bool,
    origin: str,
    sums: Mapping[str, str] = {},
) -> dict:
    """Builds parameters from tensors with Hugging Face's names, read one at a time in the given order.

    Args:
      shardings: a tree like the parameters'; None puts them on the first device.
      dtype: as in `abstract_params`; tensors are cast on the device, or rounded to integers (`OPTConfig.kernels`).
      separate: whether the blocks get one array per layer (`model.layers`).
      origin: names the source in errors.
      sums: hashes of tensors that are checked, see `checksums.py`.

    Raises:
      UserError: tensors are missing or unexpected, have wrong shapes or dtypes, values that are not finite, or other
        values than when they were written.
    """
    slots = names.slots(config)
    tensors_by_name = _match(tensors, slots, origin)
    leaves, structure = jax.tree_util.tree_flatten_with_path(abstract_params(config, dtype))
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    sharding_list = [device] * len(leaves) if shardings is None else structure.flatten_up_to(shardings)
    sharding_of = dict(zip(paths, sharding_list))
    like = {path: leaf for path, (_, leaf) in zip(paths, leaves)}
    params: dict[str, Any] = dict.fromkeys(paths)
    for path in paths:
        if path.startswith("blocks/"):
            shape, dtype_of = like[path].shape, like[path].dtype
            params[path] = [None] * shape[0] if separate else _zeros(shape, dtype_of, sharding_of[path])

    for name, tensor in tensors_by_name.items():
        slot = slots[name]
        sharding = sharding_of[slot.path]
        # Sent in torch's layout: casting and transposing are faster on the device and need no second copy on the host.
        host = tensor.read()
        if host.dtype == np.float64:
            host = host.astype(np.float32)
        array = _to_devices(host, _torch_sharding(sharding, slot, len(like[slot.path].shape)))
        if name in sums and sums[name] != _hash(array):
            raise UserError(
                f"{tensor.file}: tensor {name} is not what was exported; write the file again, or remove "
                f"{tensor.file.parent / checksums.FILE} if you changed the weights"
            )
        shape, dtype_of = like[slot.path].shape, like[slot.path].dtype
        # A matrix that is stored as integers fills two arrays, the integers and their scales.
        paths_of_slot = (slot.path, slot.path.replace("kernel", int8.SCALE))[: 1 + (dtype_of == jnp.int8)]
        if slot.layer is None:
            (params[slot.path],), finite = _convert((sharding,), slot.inputs, shape, dtype_of)(array)
        elif separate:
            layer_shardings = tuple(layer_sharding(sharding_of[path]) for path in paths_of_slot)
            leaves, finite = _convert(layer_shardings, slot.inputs, shape[1:], dtype_of)(array)
            for path, leaf in zip(paths_of_slot, leaves):
                params[path][slot.layer] = leaf
        else:
            write = _write_layer(tuple(sharding_of[path] for path in paths_of_slot), slot.inputs)
            leaves, finite = write([params[path] for path in paths_of_slot], array, slot.layer)
            params |= zip(paths_of_slot, leaves)
        if not finite:  # waits for the device, so that the host holds one tensor at a time
            computed = jnp.float32 if dtype_of == jnp.int8 else dtype_of
            raise UserError(f"{tensor.file}: tensor {name} has NaN or infinite values (as {jnp.dtype(computed).name})")
        del array, host
    placed = (Layers(params[path]) if isinstance(params[path], list) else params[path] for path in paths)
    return jax.tree_util.tree_unflatten(structure, placed)


def _match(tensors: Mapping[str, Tensor], slots: Mapping[str, names.Slot], origin: str) -> dict[str, Tensor]:
    """Matches tensors to slots by bare name, and checks that none is missing, unexpected or of the wrong shape."""
    matched: dict[str, Tensor] = {}
    for full, tensor in tensors.items():
        name = names.bare(full)
        if name in matched:
            raise UserError(f"{origin}: tensor {name} appears twice, once as {full}; keep one")
        if name not in IGNORED:
            matched[name] = tensor
    head, embedding = matched.pop(names.HEAD, None), matched.get("embed_tokens.weight")
    if surplus := sorted(matched.keys() - slots.keys()):
        raise UserError(
            f"{origin}: tensor {surplus[0]} is not part of the configured model{nearest(surplus[0], slots)}"
            + (f" ({len(surplus)} such tensors)" if len(surplus) > 1 else "")
        )
    if missing := sorted(slots.keys() - matched.keys()):
        raise UserError(
            f"{origin}: tensor {missing[0]} is missing" + (f" ({len(missing)} are)" if len(missing) > 1 else "")
        )
    for name, slot in slots.items():
        if matched[name].shape != slot.shape:
            raise UserError(
                f"{matched[name].file}: tensor {name} has shape {matched[name].shape}; the model has {slot.shape}"
            )
        if matched[name].dtype not in FLOATS.values():
            raise UserError(
                f"{matched[name].file}: tensor {name} is {matched[name].dtype}; weights are fp64, fp32, fp16 or bf16"
            )
    if head is not None and not _same(head, embedding):
        raise UserError(f"{origin}: {names.HEAD} differs from embed_tokens.weight; an untied output is not supported")
    return matched


def _same(head: Stored, embedding: Stored, chunk: int = 4_096) -> bool:
    """Whether two tensors are bit-equal; compares a few rows at a time."""
    if (head.shape, head.dtype) != (embedding.shape, embedding.dtype):
        return False
    if head == embedding:  # the same bytes of the same file
        return True
    return all(
        head.rows(start, start + chunk).read().tobytes() == embedding.rows(start, start + chunk).read().tobytes()
        for start in range(0, head.shape[0], chunk)
    )


def _torch_sharding(sharding: Sharding, slot: names.Slot, rank: int) -> Sharding:
    """The sharding of a tensor in torch's layout ([out, in], split axes joined, no layers), from its array's.

    Args:
      rank: of the array.
    """
    if not isinstance(sharding, NamedSharding):
        return sharding
    axes = [*sharding.spec, *[None] * (rank - len(sharding.spec))][slot.layer is not None :]
    if slot.inputs:
        axes = [axes[slot.inputs], axes[0]]  # of joined axes (H and K) only the first is sharded
    return NamedSharding(sharding.mesh, PartitionSpec(*axes[: len(slot.shape)]))


def _to_devices(host: np.ndarray, sharding: Sharding) -> jax.Array:
    """Copies to each device of this process its part of the array."""
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _hash(array: jax.Array) -> str:
    mesh = array.sharding.mesh if isinstance(array.sharding, NamedSharding) else None
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        return fingerprint(array)


@functools.cache
def _zeros_function(shape: tuple[int, ...], dtype: jnp.dtype, sharding: Sharding) -> Any:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


def _zeros(shape: tuple[int, ...], dtype: jnp.dtype, sharding: Sharding) -> jax.Array:
    return _zeros_function(shape, dtype, sharding)()


def _converted(
    tensor: jax.Array, inputs: int, shape: tuple[int, ...], dtype: jnp.dtype
) -> tuple[list[jax.Array], jax.Array]:
    """A tensor as an array of this shape, or as integers and their scales, and whether its values are finite."""
    leaf = (tensor.T if inputs else tensor).reshape(shape)
    leaf = leaf.astype(jnp.float32 if dtype == jnp.int8 else dtype)
    # Zero, or NaN. XLA's `max` on CPUs passes over NaN, and `all` would need a flag for each element of the embedding.
    finite = jnp.isfinite((leaf * 0).sum())
    return list(int8.quantize(leaf, range(inputs))) if dtype == jnp.int8 else [leaf], finite


@functools.cache
def _convert(shardings: Sequence[Sharding], inputs: int, shape: tuple[int, ...], dtype: jnp.dtype) -> Any:
    return jax.jit(lambda tensor: _converted(tensor, inputs, shape, dtype), out_shardings=([*shardings], None))


@functools.cache
def _write_layer(shardings: Sequence[Sharding], inputs: int) -> Any:
    def write(stacked: list[jax.Array], tensor: jax.Array, layer: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        updates, finite = _converted(tensor, inputs, stacked[0].shape[1:], stacked[0].dtype)
        update = functools.partial(jax.lax.dynamic_update_index_in_dim, index=layer, axis=0)
        return [update(whole, part) for whole, part in zip(stacked, updates)], finite

    return jax.jit(write, donate_argnums=0, out_shardings=([*shardings], None))

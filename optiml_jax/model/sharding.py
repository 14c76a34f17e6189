"""Sharding of every array: two tables from dimension letters to mesh axes.

Mesh axes: `data` (replicas), `fsdp` (parameters and batch), `tensor` (heads, feed-forward, vocabulary).
"""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from optiml_jax.common.errors import UserError
from optiml_jax.common.settings import check
from optiml_jax.model.config import OPTConfig

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # the axes over which the rows of a batch are split

# dimension letter -> mesh axes; letters without an entry are replicated
PARAMETERS = {"D": "fsdp", "H": "tensor", "F": "tensor", "V": "tensor"}
ACTIVATIONS = {"B": BATCH_AXES, "Y": BATCH_AXES, "H": "tensor", "F": "tensor", "V": "tensor"}
RESIDUAL = ACTIVATIONS | {"T": "tensor"}  # between blocks only
GATHERED = {"V": "tensor"}  # the embedding in use: whole in D, so that lookup and head need no communication

# N layers, P positions, R rank of adapters, E embedding width (350M: 512, else the embedding is VD)
SHAPES = {
    "token_embedding": "VD",
    "position_embedding": "PD",  # 2,050 rows: only D divides
    "project_in": "ED",
    "project_out": "DE",
    "blocks/attention_norm/scale": "ND",
    "blocks/attention_norm/bias": "ND",
    "blocks/query/kernel": "NDHK",
    "blocks/query/bias": "NHK",
    "blocks/key/kernel": "NDHK",
    "blocks/key/bias": "NHK",
    "blocks/value/kernel": "NDHK",
    "blocks/value/bias": "NHK",
    "blocks/out/kernel": "NHKD",
    "blocks/out/bias": "ND",
    "blocks/mlp_norm/scale": "ND",
    "blocks/mlp_norm/bias": "ND",
    "blocks/up/kernel": "NDF",
    "blocks/up/bias": "NF",
    "blocks/down/kernel": "NFD",
    "blocks/down/bias": "ND",
    "blocks/query/kernel_scale": "NHK",
    "blocks/key/kernel_scale": "NHK",
    "blocks/value/kernel_scale": "NHK",
    "blocks/out/kernel_scale": "ND",
    "blocks/up/kernel_scale": "NF",
    "blocks/down/kernel_scale": "ND",
    "blocks/query/lora_a": "NDR",
    "blocks/query/lora_b": "NRHK",
    "blocks/key/lora_a": "NDR",
    "blocks/key/lora_b": "NRHK",
    "blocks/value/lora_a": "NDR",
    "blocks/value/lora_b": "NRHK",
    "blocks/out/lora_a": "NHKR",
    "blocks/out/lora_b": "NRD",
    "blocks/up/lora_a": "NDR",
    "blocks/up/lora_b": "NRF",
    "blocks/down/lora_a": "NFR",
    "blocks/down/lora_b": "NRD",
    "final_norm/scale": "D",
    "final_norm/bias": "D",
}


def spec(letters: str, table: Mapping[str, str | tuple[str, ...]] = ACTIVATIONS) -> PartitionSpec:
    """The `PartitionSpec` of an array with these dimensions.

    Raises:
      ValueError: two dimensions would share a mesh axis.
    """
    axes = [table.get(letter) for letter in letters]
    used = [name for entry in axes if entry for name in ([entry] if isinstance(entry, str) else entry)]
    if len(used) != len(set(used)):
        raise ValueError(f"dimensions {letters} use a mesh axis twice: {axes}")
    return PartitionSpec(*axes)


def batch_parts(sizes: Mapping[str, int]) -> int:
    """Into how many parts the rows of a batch are split, given the sizes of the mesh axes (`mesh.shape`)."""
    return math.prod(sizes[axis] for axis in BATCH_AXES)


def constrain(x: jax.Array, letters: str, table: Mapping[str, str | tuple[str, ...]] = ACTIVATIONS) -> jax.Array:
    """Constrains `x` to the table's sharding under `jax.set_mesh`; without a mesh (one device) it does nothing."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(letters, table))


def platform() -> str:
    """Platform of the current mesh, whose devices may be abstract (`plan`), else of this machine: "cpu" or "gpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of type Auto over all `devices` (default: every device of every process).

    Raises:
      UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    names = ("DATA_AXIS", "FSDP_AXIS", "TENSOR_AXIS")
    data, fsdp, tensor = shape = tuple(check(*setting, int) for setting in zip(names, (data, fsdp, tensor)))
    if math.prod(shape) != len(devices):  # jax would silently leave the other devices idle
        raise UserError(
            f"DATA_AXIS * FSDP_AXIS * TENSOR_AXIS = {data} * {fsdp} * {tensor} = {math.prod(shape)}, but there are "
            f"{len(devices)} devices; choose axes that multiply to {len(devices)}"
        )
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def check_divides(
    config: OPTConfig,
    mesh: Mesh,
    batch_rows: int | None = None,
    row_length: int | None = None,
    accumulation: int = 1,
) -> None:
    """Refuses a mesh whose axes do not divide the dimensions they shard, and a batch that microbatches do not divide.

    Args:
      batch_rows: of the global batch, over all its microbatches.

    Raises:
      UserError: names the dimension, its size and the axis.
    """
    _, fsdp, tensor = (mesh.shape[axis] for axis in AXES)
    needs = [
        ("model_dim", config.model_dim, fsdp, "FSDP_AXIS"),
        ("heads", config.heads, tensor, "TENSOR_AXIS"),
        ("ffn_dim", config.ffn_dim, tensor, "TENSOR_AXIS"),
        ("vocab_size", config.vocab_size, tensor, "TENSOR_AXIS"),
    ]
    if row_length is not None:
        needs.append(("ROW_LENGTH", row_length, tensor, "TENSOR_AXIS"))
    for name, size, parts, axis in needs:
        if size % parts:
            raise UserError(f"{name} {size} is not divisible by {axis} = {parts}; choose a divisor of {size}")
    parts = batch_parts(mesh.shape) * accumulation
    if batch_rows is not None and batch_rows % parts:
        axes = "DATA_AXIS * FSDP_AXIS * Computation.accumulation"
        raise UserError(f"BATCH_ROWS {batch_rows} is not divisible by {axes} = {parts}; choose a multiple")


def parameter_specs(tree: dict) -> dict:
    """The `PartitionSpec` of every leaf of a parameter tree, by its path in `SHAPES`."""

    def leaf_spec(path: tuple, leaf) -> PartitionSpec:
        name = "/".join(key.key for key in path)
        letters = SHAPES[name]
        if len(letters) != len(leaf.shape):
            raise ValueError(f"{name} has shape {leaf.shape}, expected the dimensions {letters}")
        return spec(letters, PARAMETERS)

    return jax.tree_util.tree_map_with_path(leaf_spec, tree)


def parameter_shardings(tree: dict, mesh: Mesh) -> dict:
    """`NamedSharding`s for a parameter tree (arrays or `ShapeDtypeStruct`s)."""
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, leaf), parameter_specs(tree), is_leaf=lambda x: isinstance(x, PartitionSpec)
    )

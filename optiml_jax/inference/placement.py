"""Where a model is: whole on every device if it fits, which is fastest, else split over as few devices as hold it."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from optiml_jax.common.distributed import from_first
from optiml_jax.common.settings import check_fields
from optiml_jax.inference.capacity import free_bytes
from optiml_jax.model import decoder, sharding
from optiml_jax.model.config import OPTConfig

WEIGHT_SHARE = 0.75  # of a device's free memory; the rest is for the KV cache and activations


@dataclasses.dataclass(frozen=True)
class Axes:
    """Axes of the mesh of an evaluation, with the meaning that they have in training.

    Attributes:
      data: parts of the prompts, each answered with a copy of the weights; None: all devices that the others leave.
      fsdp: parts of the prompts and of the weights, which are gathered layer by layer; None: 1.
      tensor: parts of heads, feed-forward and vocabulary; None: as few as hold the weights.
    """

    data: int | None = None
    fsdp: int | None = None
    tensor: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def choose_mesh(config: OPTConfig, dtype: jnp.dtype, axes: Axes, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of these axes over `devices` (default: every device of every process).

    Raises:
      UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    free = free_bytes(devices)
    # In MiB, to fit into int32; all processes must choose the same.
    (free_mib,) = from_first(np.array([-1 if free is None else free >> 20], np.int32))
    sizes = choose_axes(config, dtype, axes, len(devices), None if free_mib < 0 else int(free_mib) << 20)
    return sharding.make_mesh(*sizes, devices=devices)


def choose_axes(
    config: OPTConfig, dtype: jnp.dtype, axes: Axes, devices: int, free_bytes: int | None
) -> tuple[int, int, int]:
    """The sizes of the axes (data, fsdp, tensor).

    Args:
      devices: their number.
      free_bytes: of each of them; None if unknown, as on CPUs.
    """
    fsdp = 1 if axes.fsdp is None else axes.fsdp
    tensor, data = axes.tensor, axes.data
    if tensor is None:
        available = max(1, devices // max(1, fsdp * (data or 1)))
        weight_bytes = decoder.parameter_count(config) * jnp.dtype(dtype).itemsize // max(1, fsdp)
        tensor = 1 if free_bytes is None else _parts(config, weight_bytes, available, free_bytes)
    if data is None:
        data = max(1, devices // max(1, fsdp * tensor))
    return data, fsdp, tensor


def _parts(config: OPTConfig, weight_bytes: int, available: int, free_bytes: int) -> int:
    """The smallest number of parts of which each fits a device; the largest possible number if none does."""
    sizes = config.heads, config.ffn_dim, config.vocab_size
    possible = [n for n in range(1, available + 1) if available % n == 0 and not any(size % n for size in sizes)]
    return next((n for n in possible if weight_bytes / n <= WEIGHT_SHARE * free_bytes), possible[-1])

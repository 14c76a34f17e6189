"""How much is computed at once: by the memory that the weights leave free on GPUs, by measured speed on CPUs."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from optiml_jax.model import sharding
from optiml_jax.model.config import OPTConfig

# Fractions of the memory that the weights leave free. The rest is for activations, logits and, without pages, a second
# KV cache, since resizing copies it.
CACHE_SHARE = 0.3
PAGES_SHARE = 0.5
PREFILL_SHARE = 0.1
GPU_ROWS = 256
GPU_POSITIONS = 32_768  # per device in one batch, from which on larger matrix products are not faster
GPU_PREFILL = 16_384


class Capacity(NamedTuple):
    """Limits of one batch, over all devices; a single row may be longer. They change no score and no answer.

    Attributes:
      rows: prompts answered, or rows scored.
      positions: scored in one batch.
      prefill_positions: of prompts that are read together before they are answered.
      cache_positions: of the KV cache.
    """

    rows: int
    positions: int
    prefill_positions: int
    cache_positions: int


CPU = Capacity(rows=16, positions=2_048, prefill_positions=8_192, cache_positions=16_384)  # faster with less


def capacity(config: OPTConfig, mesh: Mesh, width: int, free_bytes: int | None, paged: bool = False) -> Capacity:
    """The capacity of a mesh.

    Args:
      width: bytes of a number in the KV cache.
      free_bytes: per device, beside the weights; None if it is unknown, as on CPUs.
      paged: whether the KV cache consists of pages.
    """
    parts = sharding.batch_parts(mesh.shape)
    if free_bytes is None:
        return CPU._replace(positions=CPU.positions * parts)
    each = position_bytes(config, mesh, width)
    cache, prefill = (
        int(share * free_bytes) // each for share in (PAGES_SHARE if paged else CACHE_SHARE, PREFILL_SHARE)
    )
    longest = config.max_positions
    if paged:
        cache = min(cache, GPU_ROWS * longest)  # rows cannot fill more
    return Capacity(
        GPU_ROWS * parts,
        GPU_POSITIONS * parts,
        min(GPU_PREFILL, max(prefill, longest)) * parts,
        max(cache, longest) * parts,
    )


def position_bytes(config: OPTConfig, mesh: Mesh, width: int) -> int:
    """Bytes per device of the keys and values of a position, in all layers; `width` as in `capacity`."""
    return 2 * config.layers * config.model_dim * width // mesh.shape["tensor"]


def free_bytes(devices: Iterable[jax.Device]) -> int | None:
    """The memory that is free on the fullest of this process' devices; None where the platform does not tell."""
    local = [device for device in devices if device.process_index == jax.process_index()]
    statistics = [device.memory_stats() or {} for device in local if device.platform == "gpu"]
    free = [each.get("bytes_limit", math.nan) - each.get("bytes_in_use", math.nan) for each in statistics]
    return None if not free or math.isnan(sum(free)) else int(min(free))

"""Compiles the programs of an evaluation for GPUs that are not there: does it fit, and how fast can decoding be?"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from optiml_jax.common.cards import Card
from optiml_jax.inference import cache_attention, decoding, kv_cache, ranking
from optiml_jax.inference.cache_attention import plan_reads
from optiml_jax.inference.capacity import Capacity, capacity, position_bytes
from optiml_jax.inference.network import has_separate_layers
from optiml_jax.model import decoder, sharding
from optiml_jax.model.config import OPTConfig
from optiml_jax.model.layers import is_separate, separate
from optiml_jax.planning.compiled import described_devices, shard_bytes
from optiml_jax.planning.kernels import loop_kernels

CANDIDATES = 4  # M: targets per position of a scored batch
EOS = 2


@dataclasses.dataclass(frozen=True)
class EvaluationPlan:
    """Memory per device, and the floor of a decoding step.

    Attributes:
      weight_bytes: in the dtype that computes.
      cache_rows, cache_length: of the largest KV cache with rows of the longest length.
      cache_bytes: of it. A change of its shape holds two.
      temporary_bytes: program -> temporaries and results beside weights and cache: "scoring", "prefill", "decoding".
      prefilled_bytes: keys and values of prompts that wait for a row.
      peak_bytes: the most that is in memory at once.
      floor_seconds: of a decoding step: weights and the whole cache, read once at the card's bandwidth.
      kernels, step_bytes: of a decoding step with the whole cache, as compiled; None where `inference.cache_attention`
        is not used.
      compiled_for: "cuda", or "cpu" where the plugin is missing.
    """

    weight_bytes: int
    cache_rows: int
    cache_length: int
    cache_bytes: int
    temporary_bytes: dict[str, int]
    prefilled_bytes: int
    peak_bytes: int
    floor_seconds: float
    kernels: int | None
    step_bytes: int | None
    compiled_for: str


def make_plan(config: OPTConfig, axes: tuple[int, int, int], dtype: jnp.dtype, card: Card) -> EvaluationPlan:
    """Compiles scoring, prefill and decoding at the sizes that `capacity` gives them on this card.

    Raises:
      UserError: the mesh does not divide the model.
    """
    devices, compiled_for = described_devices(card, math.prod(axes))
    mesh = sharding.make_mesh(*axes, devices=devices)
    sharding.check_divides(config, mesh)
    like = decoder.abstract_params(config, dtype)
    shardings = sharding.parameter_shardings(like, mesh)
    weight_bytes = shard_bytes(like, shardings)
    params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, shardings)
    if has_separate_layers(mesh):
        params = separate(params)
    width = jnp.dtype(dtype).itemsize
    size = capacity(config, mesh, width, max(0, card.limit_bytes - weight_bytes))
    parts = sharding.batch_parts(mesh.shape)
    length = decoding.bucket(config.max_positions, cache_attention.BLOCK)
    rows = size.rows
    while rows > parts and rows * length > size.cache_positions:
        rows //= 2  # as `decoding` does
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        programs = {
            name: program.lower().compile()
            for name, program in _programs(params, config, mesh, dtype, size, rows, length).items()
        }
    memory = {name: program.memory_analysis() for name, program in programs.items()}
    each = position_bytes(config, mesh, width)
    cache_bytes = rows // parts * length * each
    prefilled = size.prefill_positions // parts * each
    beside = {name: m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes for name, m in memory.items()}
    peaks = [
        beside["scoring"],
        beside["prefill"] + cache_bytes,
        beside["decoding"] + cache_bytes + prefilled,
        2 * cache_bytes + prefilled,
    ]
    kernels = loop_kernels(programs["decoding"].as_text()) if is_separate(params) else None
    return EvaluationPlan(
        weight_bytes=weight_bytes,
        cache_rows=rows,
        cache_length=length,
        cache_bytes=cache_bytes,
        temporary_bytes=beside,
        prefilled_bytes=prefilled,
        peak_bytes=weight_bytes + max(peaks),
        floor_seconds=(weight_bytes + cache_bytes) / card.memory_bandwidth,
        kernels=kernels and kernels.count,
        step_bytes=kernels and kernels.bytes + cache_bytes,
        compiled_for=compiled_for,
    )


def _programs(
    params: dict, config: OPTConfig, mesh: Mesh, dtype: jnp.dtype, size: Capacity, rows: int, length: int
) -> dict[str, Any]:
    """The traced programs, with the longest rows."""

    def ids(*shape: int, dtype: jnp.dtype = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    longest, parts = config.max_positions, sharding.batch_parts(mesh.shape)
    scored = max(parts, size.positions // longest)
    read = max(parts, min(size.prefill_positions, size.positions) // longest)
    batch = [ids(scored, longest)] * 4 + [ids(scored, longest, CANDIDATES), ids(scored, longest, dtype=jnp.bool_)]
    cache = jax.eval_shape(lambda: kv_cache.empty(rows, length, config, dtype))
    if is_separate(params):
        reads = jax.eval_shape(lambda: plan_reads([()] * rows, [0] * rows, length, parts))
    else:
        reads = None
    return {
        "scoring": ranking.batch_log_probabilities.trace(params, *batch, config, dtype),
        "prefill": kv_cache.read.trace(params, *[ids(read, longest)] * 4, config, dtype),
        "decoding": kv_cache.decode.trace(params, cache, ids(rows), ids(), ids(), None, reads, config, dtype, EOS),
    }

"""Compiles the programs of an evaluation for GPUs that are not there: does it fit, and how fast can decoding be?"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from optiml_jax.common.cards import Card
from optiml_jax.inference import kv_cache, ranking
from optiml_jax.inference.cache_attention import PAGE, plan_reads
from optiml_jax.inference.capacity import Capacity, capacity, position_bytes
from optiml_jax.inference.network import has_separate_layers
from optiml_jax.inference.paged_cache import most_pages, page_count
from optiml_jax.inference.row_cache import bucket
from optiml_jax.model import decoder, sharding
from optiml_jax.model.config import OPTConfig
from optiml_jax.model.layers import is_separate, separate
from optiml_jax.planning.compiled import compile_for_described, described_devices, shard_bytes
from optiml_jax.planning.kernels import loop_kernels

CANDIDATES = 4  # M: targets per position of a scored batch
EOS = 2


@dataclasses.dataclass(frozen=True)
class EvaluationPlan:
    """Memory per device, and the floor of a decoding step.

    Attributes:
      weight_bytes: in the dtype that computes.
      cache_rows, cache_length: of the largest KV cache, in rows of the longest length.
      cache_bytes: of it. Without pages, a change of its shape holds two.
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
    paged = is_separate(params)
    width, parts = jnp.dtype(dtype).itemsize, sharding.batch_parts(mesh.shape)
    size = capacity(config, mesh, width, max(0, card.limit_bytes - weight_bytes), paged)
    cache = _paged_cache(config, size, parts) if paged else _row_cache(config, size, parts)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        programs = {
            name: compile_for_described(program.lower())
            for name, program in _programs(params, config, mesh, dtype, size, cache).items()
        }
    memory = {name: program.memory_analysis() for name, program in programs.items()}
    each = position_bytes(config, mesh, width)
    cache_bytes = cache.positions // parts * each
    prefilled = size.prefill_positions // parts * each
    beside = {name: m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes for name, m in memory.items()}
    peaks = [
        beside["scoring"],
        beside["prefill"] + cache_bytes,
        beside["decoding"] + cache_bytes + prefilled,
        cache_bytes * (1 if paged else 2) + prefilled,
    ]
    kernels = loop_kernels(programs["decoding"].as_text()) if paged else None
    return EvaluationPlan(
        weight_bytes=weight_bytes,
        cache_rows=cache.positions // cache.length,
        cache_length=cache.length,
        cache_bytes=cache_bytes,
        temporary_bytes=beside,
        prefilled_bytes=prefilled,
        peak_bytes=weight_bytes + max(peaks),
        floor_seconds=(weight_bytes + cache_bytes) / card.memory_bandwidth,
        kernels=kernels and kernels.count,
        step_bytes=kernels and kernels.bytes + cache_bytes,
        compiled_for=compiled_for,
    )


class _CacheSize(NamedTuple):
    """The largest KV cache, over all devices: its rows and positions, the length of the longest row, and its pages if
    it has any."""

    rows: int
    positions: int
    length: int
    pages: int | None = None


def _row_cache(config: OPTConfig, size: Capacity, parts: int) -> _CacheSize:
    length = bucket(config.max_positions)
    rows = size.rows
    while rows > parts and rows * length > size.cache_positions:
        rows //= 2  # as `RowCache` does
    return _CacheSize(rows, rows * length, length)


def _paged_cache(config: OPTConfig, size: Capacity, parts: int) -> _CacheSize:
    pages = page_count(config, size.cache_positions // parts) * parts
    return _CacheSize(size.rows, pages * PAGE, most_pages(config) * PAGE, pages)


def _programs(
    params: dict, config: OPTConfig, mesh: Mesh, dtype: jnp.dtype, size: Capacity, cache_size: _CacheSize
) -> dict[str, Any]:
    """The traced programs, with the longest rows."""

    def ids(*shape: int, dtype: jnp.dtype = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    longest, parts, rows = config.max_positions, sharding.batch_parts(mesh.shape), cache_size.rows
    scored = max(parts, size.positions // longest)
    read = max(parts, min(size.prefill_positions, size.positions) // longest)
    batch = [ids(scored, longest)] * 4 + [ids(scored, longest, CANDIDATES), ids(scored, longest, dtype=jnp.bool_)]
    if cache_size.pages is None:
        cache = jax.eval_shape(lambda: kv_cache.empty(rows, cache_size.length, config, dtype))
        reads = None
    else:
        cache = jax.eval_shape(lambda: kv_cache.empty_pages(cache_size.pages, PAGE, rows, config, dtype))
        reads = jax.eval_shape(lambda: plan_reads([()] * rows, most_pages(config), parts))
    return {
        "scoring": ranking.batch_log_probabilities.trace(params, *batch, config, dtype),
        "prefill": kv_cache.read.trace(params, *[ids(read, longest)] * 4, config, dtype),
        "decoding": kv_cache.decode.trace(params, cache, ids(rows), ids(), ids(), None, reads, config, dtype, EOS),
    }

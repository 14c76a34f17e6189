"""Measures one decoding step of many rows, beside the time that its bytes take at the card's bandwidth."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from optiml_jax.common.cards import card_of
from optiml_jax.inference import kv_cache
from optiml_jax.inference.cache_attention import PAGE, plan_reads
from optiml_jax.inference.capacity import position_bytes
from optiml_jax.inference.model import Model
from optiml_jax.inference.paged_cache import most_pages
from optiml_jax.inference.row_cache import bucket
from optiml_jax.model.layers import is_separate
from tools.speed.rounds import measure

STEP = "decoding step"


def measure_step(model: Model, flags: argparse.Namespace) -> dict:
    """Measures steps over rows that are filled to 200 to 1,000 positions, without prompts in common."""
    config, rows = model.config, flags.rows
    rng = np.random.default_rng(flags.seed)
    longest = min(1_000, config.max_positions - kv_cache.STEPS)
    filled_B = rng.integers(longest // 5, longest, rows).astype(np.int32)
    if is_separate(model.params):
        counts = -(-(filled_B + kv_cache.STEPS) // PAGE)
        ends = np.cumsum(counts)
        reads = plan_reads([range(end - count, end) for count, end in zip(counts, ends)], most_pages(config))
        cache = kv_cache.empty_pages(int(ends[-1]), PAGE, rows, config, model.dtype)
    else:
        reads = None
        cache = kv_cache.empty(rows, bucket(longest + kv_cache.STEPS), config, model.dtype)
    no_eos, steps = -2, np.int32(kv_cache.STEPS)

    def decode() -> None:
        nonlocal cache
        cache = cache._replace(next_B=jnp.asarray(filled_B))
        left_B = np.full(rows, 10 * kv_cache.STEPS, np.int32)
        arguments = left_B, np.int32(rows), steps, None, reads, config, model.dtype, no_eos
        with jax.set_mesh(model.mesh):
            _, _, cache = jax.block_until_ready(kv_cache.decode(model.params, cache, *arguments))

    what = f"{STEP} {flags.model}: {rows} rows", "tokens/s", rows * kv_cache.STEPS
    result = measure(what, decode, None, max(3, flags.rounds))[0]
    weight_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    cache_bytes = int(filled_B.sum()) * position_bytes(config, model.mesh, jnp.dtype(model.dtype).itemsize)
    device = model.mesh.devices.flat[0]
    card, seconds = card_of(device.device_kind), rows / result["ours"]
    floor = (weight_bytes + cache_bytes) / card.memory_bandwidth if card else None
    return result | {
        "step_seconds": seconds,
        "step_bytes": weight_bytes + cache_bytes,
        "floor_seconds": floor,
        "multiple_of_floor": floor and seconds / floor,
        "peak_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use"),
    }

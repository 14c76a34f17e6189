"""`attention`: attention of one layer over packed rows, forward and backward, compared with torch."""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from optiml_jax.common.errors import UserError
from optiml_jax.model.attention import attention
from optiml_jax.model.config import PRECISIONS
from tools.speed import rows
from tools.speed.models import MODELS
from tools.speed.rounds import Side, interleave, row

RELATIVE = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 5e-3}  # relative to the largest value; the peer may use TF32


def compare(flags: argparse.Namespace) -> tuple[list[dict], list[str]]:
    """Returns a row for each of torch's implementations, the fastest exact one first, and lines that describe the
    measurement."""
    config = MODELS[flags.model]
    if not flags.no_peer:
        try:
            from tools.speed import torch_attention
        except ImportError as error:
            raise UserError(f"the peer is not installed ({error}); pip install '.[test]', or use --no_peer") from None
    batches = rows.batches(argparse.Namespace(**vars(flags) | {"steps": 1}), config.vocab_size)
    segment_ids_BT = batches[0].arrays["segment_ids_BT"]
    shape = (*segment_ids_BT.shape, config.heads, config.head_dim)
    rng = np.random.default_rng(flags.seed)
    q, k, v, d_out = (rng.standard_normal(shape, np.float32) for _ in range(4))
    arrays = q * config.head_dim**-0.5, k, v, d_out * (segment_ids_BT > 0)[..., None, None]

    ours = Side("ours", _ours(arrays, segment_ids_BT, flags))
    ways = {} if flags.no_peer else torch_attention.ways(arrays, segment_ids_BT, flags)
    sides = [Side(name, run) for name, run in ways.items()]
    interleave(ours, sides, flags.rounds)

    tokens = int((segment_ids_BT > 0).sum()) * flags.steps
    pairs = sum(n * (n + 1) // 2 for ids in segment_ids_BT for n in np.unique(ids[ids > 0], return_counts=True)[1])
    flops = 14 * int(pairs) * config.heads * config.head_dim * flags.steps  # 2 products forward, 5 backward
    common = {"ours_seconds_a_layer": ours.median / flags.steps, "ours_flops": flops / ours.median}
    name = f"attention {flags.model} {flags.precision}"
    real = segment_ids_BT > 0
    want = np.asarray(ours.first, np.float32)[real]
    results = []
    for side in sides:
        error = np.abs(torch_attention.numpy(side.first)[real] - want).max() / np.abs(want).max()
        same = {"exact": bool(error < RELATIVE[flags.precision]), "difference": float(error)}
        same["peer_seconds_a_layer"] = side.median / flags.steps
        results.append(row(f"{name}: {side.name}", "real tokens/s", tokens, ours, side) | same | common)
    notes = [
        rows.describe(batches, flags),
        f"{config.heads} heads of {config.head_dim}, {flags.precision}, forward and backward; ours: "
        f"{ours.median / flags.steps * 1e3:.3f} ms per layer, {flops / ours.median / 1e12:.1f} TFLOP/s of the pairs "
        "that documents have",
    ]
    results.sort(key=lambda row: (not row["exact"], row["ratio"]))
    return results or [row(name, "real tokens/s", tokens, ours, None) | common], notes


def _ours(arrays: tuple[np.ndarray, ...], segment_ids_BT: np.ndarray, flags: argparse.Namespace) -> Callable:
    """Runs forward and backward `flags.steps` times; returns the output."""
    *qkv, d_out = (jnp.asarray(x, PRECISIONS[flags.precision]) for x in arrays)
    segment_ids_BT = jnp.asarray(segment_ids_BT)

    @jax.jit
    def step(q, k, v, d_out):
        def compute(q, k, v):
            return attention(q, k, v, segment_ids_BT, implementation=flags.attention)

        out, pull = jax.vjp(compute, q, k, v)
        return out, pull(d_out)

    def run() -> jax.Array:
        for _ in range(flags.steps):
            out, gradients = step(*qkv, d_out)
        jax.block_until_ready(gradients)
        return out

    return run

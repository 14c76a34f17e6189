"""`train`: real tokens per second of training steps, compared with Hugging Face's on the same rows."""

import argparse
import dataclasses
import tempfile
from pathlib import Path

from optiml_jax.common.errors import UserError
from optiml_jax.model import decoder
from optiml_jax.training import flops
from optiml_jax.training.optimizer import Optimization
from optiml_jax.training.step import Computation
from tools.speed import profile, rows
from tools.speed.models import MODELS
from tools.speed.ours import Ours
from tools.speed.rounds import Side, interleave, row


def compare(flags: argparse.Namespace) -> tuple[list[dict], list[str]]:
    """Returns a row for each layout of the peer, the fastest first, and lines that describe the measurement."""
    config = dataclasses.replace(MODELS[flags.model], dropout=flags.dropout)
    if flags.row_length > config.max_positions:
        raise UserError(f"--row_length={flags.row_length} is more than the model's {config.max_positions} positions")
    if not flags.no_peer:
        from tools.speed import peer  # needs torch and transformers

    optimization = Optimization()
    computation = Computation(flags.precision, flags.remat, flags.layers, attention=flags.attention)
    batches = rows.batches(flags, config.vocab_size)
    with tempfile.TemporaryDirectory() as directory:
        weights = None if flags.no_peer else Path(directory) / "initial"
        mine = Ours(config, optimization, computation, batches, flags.seed, weights)
        theirs = [] if flags.no_peer else peer.peers(weights, optimization, flags, [batch.arrays for batch in batches])
    ours, sides = Side("ours", mine.run), [Side(result.layout.name, result.run) for result in theirs]
    interleave(ours, sides, flags.rounds)
    found_profile = profile.measure(mine.run) if flags.profile else None

    real, labels = (sum(getattr(batch, name) for batch in batches) for name in ("real_tokens", "local_label_tokens"))
    parameters, peak = decoder.parameter_count(config), flops.peak_flops()
    common = {
        "ours_step_seconds": ours.median / flags.steps,
        "ours_mfu": flops.mfu(parameters, real, ours.median, 1, peak),
        "ours_losses": ours.first,
        "ours_first_seconds": ours.first_seconds,
        "ours_peak_bytes": mine.peak_bytes,
        "ours_profile": found_profile,
        "real_tokens": real,
        "label_tokens": labels,
        "positions": flags.steps * flags.rows * flags.row_length,
    }
    name = f"train {flags.model} {flags.precision}"
    results = [
        row(f"{name}: {result.layout.name}", "real tokens/s", real, ours, side)
        | {
            "exact": result.layout.exact,
            "peer_step_seconds": side.median / flags.steps,
            "peer_mfu": flops.mfu(parameters, real, side.median, 1, peak),
            "peer_losses": side.first,
        }
        | result.counts()
        | common
        for result, side in zip(theirs, sides)
    ]
    used = common["ours_mfu"]
    notes = [
        rows.describe(batches, flags),
        f"{parameters:,} parameters, {flags.precision}, remat {flags.remat}, layers {flags.layers}, dropout "
        f"{flags.dropout}; {flags.steps} steps per round, {flags.rounds} rounds",
        f"ours: {ours.median / flags.steps:.4g} s per step, "
        f"{6e-12 * parameters * real / ours.median:.3f} model TFLOP/s "
        "(6 * parameters * real tokens/s)" + (f", MFU {used:.1%}" if used else "") + f"; {ours.first_seconds:.0f} s to "
        "compile and run once; exact: documents do not attend to each other",
    ]
    notes += [] if found_profile is None else profile.lines(found_profile, flags.steps)
    results.sort(key=lambda row: row["ratio"])
    return results or [row(name, "real tokens/s", real, ours, None) | common], notes

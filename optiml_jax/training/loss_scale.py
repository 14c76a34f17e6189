"""Dynamic loss scaling as OPT ran it (metaseq `dataclass/configs.py`): start 4, window 256, error at the floor 2^-5."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

INITIAL = 4.0
WINDOW = 256  # finite steps before the scale doubles
FLOOR = 2.0**-5


class LossScale(NamedTuple):
    """`scale`: float32 scalar; `good`: int32, number of finite steps since the scale last changed."""

    scale: jax.Array
    good: jax.Array


def initial(precision: str) -> LossScale:
    """4 for fp16; 1 for fp32 and bf16, where it never changes."""
    return LossScale(jnp.float32(INITIAL if precision == "fp16" else 1.0), jnp.int32(0))


def adjust(state: LossScale, finite: jax.Array) -> LossScale:
    """Halves the scale after an overflow and doubles it after `WINDOW` finite steps; never below the floor."""
    doubled = state.good + 1 == WINDOW
    scale = jnp.where(finite, jnp.where(doubled, 2 * state.scale, state.scale), state.scale / 2)
    return LossScale(jnp.maximum(scale, FLOOR), jnp.where(finite & ~doubled, state.good + 1, 0))

"""The dtype in which a model answers, and in which its weights and KV cache are in memory."""

import jax
import jax.numpy as jnp

from optiml_jax.model.config import PRECISIONS

AUTO = "auto"
NAMES = (AUTO, *PRECISIONS)


def dtype_on(device: jax.Device, precision: str) -> jnp.dtype:
    """The dtype of a precision on a device.

    Args:
      precision: a name in `NAMES`; "auto" is bfloat16 on GPUs (float16 before Ampere, which lack it) and float32 on
        CPUs.
    """
    capability = tuple(map(int, device.compute_capability.split("."))) if device.platform == "gpu" else (0, 0)
    return dtype_of(precision, device.platform, capability)


def dtype_of(precision: str, platform: str, capability: tuple[int, int]) -> jnp.dtype:
    """As `dtype_on`, for a device that need not exist.

    Args:
      capability: CUDA compute capability.
    """
    if precision != AUTO:
        return PRECISIONS[precision]
    if platform != "gpu":
        return jnp.float32
    return jnp.bfloat16 if capability >= (8, 0) else jnp.float16

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
    if precision != AUTO:
        return PRECISIONS[precision]
    if device.platform != "gpu":
        return jnp.float32
    return jnp.bfloat16 if float(device.compute_capability) >= 8 else jnp.float16

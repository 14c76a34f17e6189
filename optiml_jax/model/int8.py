"""Matrices of the blocks as 8-bit integers with one float32 scale per output: kernel = integers * scale.

The largest value of each output becomes 127, the others are rounded. The integers are exact in every compute dtype, and
the product with them is multiplied by the scales, so that no float copy of the model is made.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp

LARGEST = 127
SCALE = "kernel_scale"  # its name beside "kernel"


def quantize(kernel: jax.Array, inputs: Iterable[int]) -> tuple[jax.Array, jax.Array]:
    """Rounds a matrix to integers.

    Args:
      inputs: the axes of its inputs.

    Returns:
      The integers, int8, and the scales, which have the other axes.
    """
    axes, kernel = tuple(inputs), kernel.astype(jnp.float32)
    scale = jnp.abs(kernel).max(axes, keepdims=True) / LARGEST
    integers = jnp.round(kernel / jnp.where(scale == 0, 1, scale)).astype(jnp.int8)
    return integers, scale.squeeze(axes)


def quantize_blocks(params: dict, like: dict) -> dict:
    """Rounds the stacked matrices that are integers in `like`, the abstract parameters."""

    def quantized(part: dict, like: dict) -> dict:
        if SCALE not in like:
            return part
        inputs = range(1, 1 + part["kernel"].ndim - len(like[SCALE].shape))
        return part | dict(zip(("kernel", SCALE), quantize(part["kernel"], inputs)))

    return params | {"blocks": {name: quantized(part, like["blocks"][name]) for name, part in params["blocks"].items()}}


def float_kernel(part: dict) -> jax.Array:
    """The stacked kernel of one matrix in float32, whether it is stored as integers or not."""
    kernel = part["kernel"].astype(jnp.float32)
    if SCALE not in part:
        return kernel
    layers, *outputs = part[SCALE].shape
    return kernel * part[SCALE].reshape(layers, *[1] * (kernel.ndim - 1 - len(outputs)), *outputs)

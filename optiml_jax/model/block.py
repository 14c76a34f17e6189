"""One OPT decoder block (Zhang et al. 2022, section 2; metaseq `transformer_decoder.py`)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from optiml_jax.model import sharding
from optiml_jax.model.config import OPTConfig

PRODUCTS = ("query", "key", "value", "residual", "activation")  # what a remat policy may keep, by `checkpoint_name`


class Affine(nnx.Module):
    """A linear map whose kernel keeps the axes of the sharding table (`DHK`, `HKD`, `DF`, `FD`)."""

    def __init__(self, shape: tuple[int, ...], out_axes: int, rngs: nnx.Rngs, scale: float, bias: bool) -> None:
        self.kernel = nnx.Param(scale * jax.random.normal(rngs.params(), shape))
        if bias:
            self.bias = nnx.Param(jnp.zeros(shape[-out_axes:]))

    def __call__(self, equation: str, x: jax.Array) -> jax.Array:
        y = jnp.einsum(equation, x, self.kernel[...].astype(x.dtype))
        return y + self.bias[...].astype(x.dtype) if hasattr(self, "bias") else y


class Norm(nnx.Module):
    """Layer norm over D; statistics in float32."""

    EPSILON = 1e-5

    def __init__(self, width: int) -> None:
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        x32_BTD = x_BTD.astype(jnp.float32)
        mean_BT1 = x32_BTD.mean(-1, keepdims=True)
        variance_BT1 = jnp.square(x32_BTD - mean_BT1).mean(-1, keepdims=True)
        y_BTD = (x32_BTD - mean_BT1) * jax.lax.rsqrt(variance_BT1 + self.EPSILON) * self.scale[...]
        return (y_BTD + self.bias[...]).astype(x_BTD.dtype)


class Block(nnx.Module):
    """The parameters of one block, unstacked. Only their declaration is NNX: see `decoder.py` for the stacked tree."""

    def __init__(self, config: OPTConfig, rngs: nnx.Rngs) -> None:
        D, H, K, F = config.model_dim, config.heads, config.head_dim, config.ffn_dim
        # metaseq shrinks what writes to the residual stream by sqrt(2 * layers), as GPT-2 does.
        scale = config.init_scale
        residual = scale / (2 * config.layers) ** 0.5
        self.attention_norm = Norm(D)
        self.query = Affine((D, H, K), 2, rngs, scale, config.biases)
        self.key = Affine((D, H, K), 2, rngs, scale, config.biases)
        self.value = Affine((D, H, K), 2, rngs, scale, config.biases)
        self.out = Affine((H, K, D), 1, rngs, residual, config.biases)
        self.mlp_norm = Norm(D)
        self.up = Affine((D, F), 1, rngs, scale, config.biases)
        self.down = Affine((F, D), 1, rngs, residual, config.biases)


# (q, k, v), each [B, T, H, K] -> ([B, T, H, K], whatever the caller wants kept, such as a cache)
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


def block_forward(
    block: Block, x_BTD: jax.Array, attend: Attend, config: OPTConfig, dropout_key: jax.Array | None = None
) -> tuple[jax.Array, Any]:
    """The block's output [B, T, D], sharded over T between blocks, and what `attend` kept.

    Args:
      x_BTD: residual stream in the compute dtype.
      attend: the attention over this block's queries, keys and values; queries come scaled.
      dropout_key: None for inference.
    """
    keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)
    constrain = sharding.constrain

    y_BTD = constrain(block.attention_norm(x_BTD) if config.pre_norm else x_BTD, "BTD")
    q_BTHK, k_BTHK, v_BTHK = (
        constrain(project("btd,dhk->bthk", y_BTD), "BTHK") for project in (block.query, block.key, block.value)
    )
    # OPT scales the query, not the scores: the same in exact arithmetic, not in bf16.
    q_BTHK *= config.head_dim**-0.5
    q_BTHK, k_BTHK, v_BTHK = map(checkpoint_name, (q_BTHK, k_BTHK, v_BTHK), PRODUCTS[:3])
    out_BTHK, kept = attend(q_BTHK, k_BTHK, v_BTHK)
    # Without this constraint the backward pass spreads T into the scores: all-to-alls of gigabytes a layer.
    y_BTD = block.out("bthk,hkd->btd", constrain(out_BTHK, "BTHK"))
    x_BTD = constrain(x_BTD + dropout(y_BTD, config.dropout, keys[0]), "BTD", sharding.RESIDUAL)
    x_BTD = checkpoint_name(x_BTD, "residual")
    if not config.pre_norm:
        x_BTD = block.attention_norm(x_BTD)

    y_BTD = constrain(block.mlp_norm(x_BTD) if config.pre_norm else x_BTD, "BTD")
    activate = relu if config.activation == "relu" else gelu
    y_BTF = constrain(activate(block.up("btd,df->btf", y_BTD)), "BTF")
    y_BTD = block.down("btf,fd->btd", y_BTF)
    x_BTD = constrain(x_BTD + dropout(y_BTD, config.dropout, keys[1]), "BTD", sharding.RESIDUAL)
    if not config.pre_norm:
        x_BTD = block.mlp_norm(x_BTD)
    return x_BTD, kept


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """As `jax.nn.relu`, but the backward pass needs its output alone, which the next matrix product keeps anyway."""
    return jnp.maximum(x, 0)


def _relu_forward(x):
    y = checkpoint_name(relu(x), "activation")
    return y, y


relu.defvjp(_relu_forward, lambda y, d: (jnp.where(y > 0, d, 0),))


def gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(checkpoint_name(x, "activation"), approximate=False)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a share `rate` of `x` and scales the rest; the identity without a key."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), jnp.zeros((), x.dtype))

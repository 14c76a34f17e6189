"""An OPT decoder block (Zhang et al. 2022, section 2; metaseq `transformer_decoder.py`)."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from optiml_jax.model import int8, sharding
from optiml_jax.model.adapter import TARGETS, Lora
from optiml_jax.model.config import OPTConfig
from optiml_jax.model.norm import Norm

# Names for remat policies (`checkpoint_name`): the results of matrix products.
PRODUCTS = ("query", "key", "value", "residual", "activation")


class Affine(nnx.Module):
    """A linear map whose kernel keeps the dimensions of the sharding table (`DHK`, `HKD`, `DF`, `FD`).

    Computed as a product of two matrices plus a vector, so that cuBLAS adds the bias in the product's epilogue; with
    the dimensions of `DHK`, XLA would first broadcast it to every position.
    """

    def __init__(self, shape: tuple[int, ...], out_axes: int, rngs: nnx.Rngs, scale: float, config: OPTConfig) -> None:
        self._in_axes = len(shape) - out_axes
        kernel = scale * jax.random.normal(rngs.params(), shape)
        if config.kernels == "int8":
            kernel, kernel_scale = int8.quantize(kernel, range(self._in_axes))
            self.kernel_scale = nnx.Param(kernel_scale)
        self.kernel = nnx.Param(kernel)
        if config.biases:
            self.bias = nnx.Param(jnp.zeros(shape[-out_axes:]))
        self._adapter: Lora | None = None

    def adapt(self, adapter: Lora, rngs: nnx.Rngs) -> None:
        """Adds an adapter that changes nothing yet; A is drawn as `peft` draws it."""
        shape = self.kernel[...].shape
        inputs, outputs = shape[: self._in_axes], shape[self._in_axes :]
        bound = math.prod(inputs) ** -0.5
        self.lora_a = nnx.Param(jax.random.uniform(rngs.params(), (*inputs, adapter.rank), minval=-bound, maxval=bound))
        self.lora_b = nnx.Param(jnp.zeros((adapter.rank, *outputs)))
        self._adapter = adapter

    def __call__(self, x: jax.Array, scale: float = 1.0, dropout_key: jax.Array | None = None) -> jax.Array:
        """[B, T, *in] -> [B, T, *out]. `scale` is folded into the weights when they are cast; the key is of the
        adapter's dropout."""
        rows_BTI = x.reshape(*x.shape[:2], -1)
        if math.prod(x.shape[:2]) < rows_BTI.shape[2] and scale != 1.0:
            # few positions, as in decoding: scaling the result is cheaper
            return self(x, dropout_key=dropout_key) * scale
        shape = self.kernel[...].shape[self._in_axes :]
        if hasattr(self, int8.SCALE):
            y = rows_BTI @ self.kernel[...].astype(x.dtype).reshape(-1, math.prod(shape))
            y *= (self.kernel_scale[...] * scale).astype(x.dtype).reshape(-1)
        else:
            y = rows_BTI @ (self.kernel[...] * scale).astype(x.dtype).reshape(-1, math.prod(shape))
        if hasattr(self, "bias"):
            y += (self.bias[...] * scale).astype(x.dtype).reshape(-1)
        if self._adapter is not None:
            y += self._low_rank(rows_BTI, self._adapter, scale, dropout_key)
        return y.reshape(*y.shape[:2], *shape)

    def _low_rank(self, rows_BTI: jax.Array, adapter: Lora, scale: float, key: jax.Array | None) -> jax.Array:
        """The product of the adapter, [B, T, O]."""
        a_IR = self.lora_a[...].astype(rows_BTI.dtype).reshape(-1, adapter.rank)
        b_RO = (self.lora_b[...] * (scale * adapter.scale)).astype(rows_BTI.dtype).reshape(adapter.rank, -1)
        return dropout(rows_BTI, adapter.dropout, key) @ a_IR @ b_RO


class Block(nnx.Module):
    """Parameters of one block. NNX only declares them; `decoder.py` stacks them over layers."""

    def __init__(self, config: OPTConfig, rngs: nnx.Rngs, adapter_rngs: nnx.Rngs) -> None:
        D, H, K, F = config.model_dim, config.heads, config.head_dim, config.ffn_dim
        # metaseq divides the weights that write to the residual stream by sqrt(2 * layers), as GPT-2 does.
        scale = config.init_scale
        residual = scale / (2 * config.layers) ** 0.5
        self.attention_norm = Norm(D)
        self.query = Affine((D, H, K), 2, rngs, scale, config)
        self.key = Affine((D, H, K), 2, rngs, scale, config)
        self.value = Affine((D, H, K), 2, rngs, scale, config)
        self.out = Affine((H, K, D), 1, rngs, residual, config)
        self.mlp_norm = Norm(D)
        self.up = Affine((D, F), 1, rngs, scale, config)
        self.down = Affine((F, D), 1, rngs, residual, config)
        for name in config.adapter.targets if config.adapter else ():
            getattr(self, name).adapt(config.adapter, adapter_rngs)


# (q, k, v), each [B, T, H, K] -> ([B, T, H, K], auxiliary output of the caller's choice, such as a KV cache)
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


def block_forward(
    block: Block, x_BTD: jax.Array, attend: Attend, config: OPTConfig, dropout_key: jax.Array | None = None
) -> tuple[jax.Array, Any]:
    """Returns the block's output [B, T, D], sharded over T between blocks, and the auxiliary output of `attend`.

    Args:
      x_BTD: residual stream in the compute dtype.
      attend: attention over this block's queries (already scaled), keys and values.
      dropout_key: None for inference.
    """
    keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)

    def adapter_key(name: str) -> jax.Array | None:
        return None if dropout_key is None else jax.random.fold_in(dropout_key, 2 + TARGETS.index(name))

    constrain = sharding.constrain

    x_BTD, y_BTD = block.attention_norm.branch(x_BTD) if config.pre_norm else (x_BTD, x_BTD)
    y_BTD = gather_positions(y_BTD)
    # OPT scales the query, not the scores: the same in exact arithmetic, not in bf16.
    scaled = (("query", config.head_dim**-0.5), ("key", 1.0), ("value", 1.0))
    q_BTHK, k_BTHK, v_BTHK = (
        constrain(getattr(block, name)(y_BTD, scale, adapter_key(name)), "BTHK") for name, scale in scaled
    )
    q_BTHK, k_BTHK, v_BTHK = map(checkpoint_name, (q_BTHK, k_BTHK, v_BTHK), PRODUCTS[:3])
    out_BTHK, auxiliary = attend(q_BTHK, k_BTHK, v_BTHK)
    # Without this constraint the backward pass shards the scores over T: gigabytes of all-to-alls per layer.
    y_BTD = block.out(constrain(out_BTHK, "BTHK"), dropout_key=adapter_key("out"))
    x_BTD = constrain(x_BTD + dropout(y_BTD, config.dropout, keys[0]), "BTD", sharding.RESIDUAL)
    x_BTD = checkpoint_name(x_BTD, "residual")
    if not config.pre_norm:
        x_BTD = block.attention_norm(x_BTD)

    x_BTD, y_BTD = block.mlp_norm.branch(x_BTD) if config.pre_norm else (x_BTD, x_BTD)
    y_BTD = gather_positions(y_BTD)
    activate = relu if config.activation == "relu" else gelu
    y_BTF = constrain(activate(block.up(y_BTD, dropout_key=adapter_key("up"))), "BTF")
    y_BTD = block.down(y_BTF, dropout_key=adapter_key("down"))
    x_BTD = constrain(x_BTD + dropout(y_BTD, config.dropout, keys[1]), "BTD", sharding.RESIDUAL)
    if not config.pre_norm:
        x_BTD = block.mlp_norm(x_BTD)
    return x_BTD, auxiliary


def gather_positions(y_BTD: jax.Array) -> jax.Array:
    """From positions sharded over the tensor axis to all positions on every device.

    Constrained twice, before and after the gather: XLA by itself gathers the float32 numbers that the norm rounds.
    """
    return sharding.constrain(sharding.constrain(y_BTD, "BTD", sharding.RESIDUAL), "BTD")


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """Like `jax.nn.relu`, but its backward pass uses the output, which the next matrix product saves anyway."""
    return jnp.maximum(x, 0)


def _relu_forward(x):
    y = checkpoint_name(relu(x), "activation")
    return y, y


relu.defvjp(_relu_forward, lambda y, d: (jnp.where(y > 0, d, 0),))


def gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(checkpoint_name(x, "activation"), approximate=False)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a fraction `rate` of `x` and rescales the rest; the identity if `key` is None."""
    if key is None or rate == 0:
        return x
    keep = random_bits(key, x.shape) >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype))


def random_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random uint32 of `shape`: hashes of the key and of each element's index, the same on every mesh.

    Lowbias32 (Wellons 2018, "Prospecting for hash functions"): two hashes of the row's index and the key, then two
    rounds over them and the column's index. A quarter of the operations of JAX's threefry, and random enough for
    dropout. Every layer's key changes all intermediate arrays of the size of `shape`; XLA would otherwise hoist them
    out of a scan over layers and read them from memory in each.
    """
    *lengths, width = shape
    row = jnp.arange(math.prod(lengths), dtype=jnp.uint32).reshape(*lengths, 1)
    first, second = (_lowbias32(row ^ word) for word in jax.random.key_data(key).ravel()[-2:])
    return _lowbias32(_lowbias32(jnp.arange(width, dtype=jnp.uint32) ^ first) ^ second)


def _lowbias32(x):
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)

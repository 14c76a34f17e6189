"""Layer norm (Ba et al. 2016) with statistics in float32, and its gradient in one pass over the activations."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from optiml_jax.model import sharding
from optiml_jax.model.triton_call import has_kernels, triton_call

EPSILON = 1e-5
STATISTICS = ("norm_mean", "norm_inverse")  # names for remat policies: two numbers per norm and position
PROGRAMS = 512  # of the kernel; each adds up the gradients of scale and bias over its share of the positions
WIDEST = 8192  # columns whose sums fit the registers of one program


class Norm(nnx.Module):
    """Layer norm over D."""

    def __init__(self, width: int) -> None:
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return layer_norm(x_BTD, self.scale[...], self.bias[...])

    def branch(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns `x_BTD` itself, for the residual connection, and its norm: their gradients then arrive together."""
        return branch_norm(x_BTD, self.scale[...], self.bias[...])


# The backward passes are written out from the mean and the inverse deviation: XLA's own would write full-size float32
# arrays for the gradients of scale and bias, and compute both statistics again.


@jax.custom_vjp
def layer_norm(x_BTD: jax.Array, scale_D: jax.Array, bias_D: jax.Array) -> jax.Array:
    """Layer norm over D."""
    return _forward(x_BTD, scale_D, bias_D)[0]


@jax.custom_vjp
def branch_norm(x_BTD: jax.Array, scale_D: jax.Array, bias_D: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns `x_BTD` and its layer norm. On GPUs, a kernel computes all gradients in one pass."""
    return x_BTD, layer_norm(x_BTD, scale_D, bias_D)


def _forward(x_BTD, scale_D, bias_D):
    x32_BTD = x_BTD.astype(jnp.float32)
    mean_BT1 = x32_BTD.mean(-1, keepdims=True)
    inverse_BT1 = jax.lax.rsqrt(jnp.square(x32_BTD - mean_BT1).mean(-1, keepdims=True) + EPSILON)
    mean_BT1, inverse_BT1 = map(checkpoint_name, (mean_BT1, inverse_BT1), STATISTICS)
    y_BTD = (x32_BTD - mean_BT1) * inverse_BT1 * scale_D + bias_D
    return y_BTD.astype(x_BTD.dtype), (x_BTD, mean_BT1, inverse_BT1, scale_D)


def _branch_forward(x_BTD, scale_D, bias_D):
    y_BTD, residuals = _forward(x_BTD, scale_D, bias_D)
    return (x_BTD, y_BTD), residuals


def _branch_backward(residuals, gradients):
    compute = kernel_gradients if uses_kernel(residuals[0].shape[-1]) else plain_gradients
    return compute(*residuals, *gradients)


def uses_kernel(D: int) -> bool:
    """Whether the kernel computes gradients of arrays with D columns on this device."""
    return sharding.platform() == "gpu" and D <= WIDEST and has_kernels()


layer_norm.defvjp(_forward, lambda residuals, d_y_BTD: plain_gradients(*residuals, 0.0, d_y_BTD))
branch_norm.defvjp(_branch_forward, _branch_backward)


def plain_gradients(
    x_BTD: jax.Array,
    mean_BT1: jax.Array,
    inverse_BT1: jax.Array,
    scale_D: jax.Array,
    d_skip_BTD: jax.Array | float,
    d_y_BTD: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of x, scale and bias, from those of the two results of `branch_norm`."""
    d_BTD = d_y_BTD.astype(jnp.float32)
    z_BTD = (x_BTD.astype(jnp.float32) - mean_BT1) * inverse_BT1
    d_z_BTD = d_BTD * scale_D
    centred_BTD = d_z_BTD - d_z_BTD.mean(-1, keepdims=True) - z_BTD * (d_z_BTD * z_BTD).mean(-1, keepdims=True)
    d_x_BTD = (centred_BTD * inverse_BT1 + d_skip_BTD).astype(x_BTD.dtype)
    d_scale_D, d_bias_D = (x.sum((0, 1)).astype(scale_D.dtype) for x in (d_BTD * z_BTD, d_BTD))
    return d_x_BTD, d_scale_D, d_bias_D


def kernel_gradients(
    x_BTD: jax.Array,
    mean_BT1: jax.Array,
    inverse_BT1: jax.Array,
    scale_D: jax.Array,
    d_skip_BTD: jax.Array,
    d_y_BTD: jax.Array,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `plain_gradients`, with a kernel that reads and writes each element once; for D up to `WIDEST`."""
    compute = functools.partial(_call, interpret=interpret)
    if not jax.sharding.get_abstract_mesh().empty:  # each device computes its own positions
        rows = sharding.spec("BTD", sharding.RESIDUAL)
        sums = PartitionSpec(sharding.AXES)
        specs = (rows, rows, rows, PartitionSpec(), rows, rows)
        compute = jax.shard_map(compute, in_specs=specs, out_specs=(rows, sums, sums), check_vma=False)
    d_x_BTD, d_scale_PD, d_bias_PD = compute(x_BTD, mean_BT1, inverse_BT1, scale_D, d_skip_BTD, d_y_BTD)
    d_scale_D, d_bias_D = (x_PD.sum(0).astype(scale_D.dtype) for x_PD in (d_scale_PD, d_bias_PD))
    return d_x_BTD, d_scale_D, d_bias_D


def _call(x_BTD, *others, interpret):
    *lengths, D = x_BTD.shape
    rows = lengths[0] * lengths[1]
    programs, width = min(PROGRAMS, rows), 1 << (D - 1).bit_length()
    sums = jax.ShapeDtypeStruct((programs, D), jnp.float32)
    results = triton_call(
        "optiml_jax.model.norm_kernels",
        "norm_gradients",
        (x_BTD, *others),
        [jax.ShapeDtypeStruct(x_BTD.shape, x_BTD.dtype), sums, sums],
        grid=(programs,),
        constants={"ROWS": rows, "D": D, "WIDTH": width, "PROGRAMS": programs},
        warps=warps(D),
        stages=1,
        interpret=interpret,
    )
    return tuple(results)


def warps(D: int) -> int:
    """The number of warps (of 32 threads) of a program that computes rows of D columns: 4 to 16, so that a thread has 8
    columns, or 16 of the widest rows."""
    return min(16, max(4, (1 << (D - 1).bit_length()) // 256))

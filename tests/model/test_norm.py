"""Layer norm and its gradients, plain and by the kernel, against float64; a model that uses the kernel."""

import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optiml_jax.model import decoder, norm, sharding

needs_triton = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton: pip install triton")
TOLERANCE = {"float32": 2e-6, "bfloat16": 2**-8}


def use_kernel(monkeypatch) -> None:
    monkeypatch.setattr(norm, "uses_kernel", lambda D: True)
    monkeypatch.setattr(norm, "kernel_gradients", functools.partial(norm.kernel_gradients, interpret=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernel", [False, pytest.param(True, marks=needs_triton)])
@pytest.mark.parametrize("D", [96, 128])
def test_the_norm_and_its_gradients_equal_float64(dtype, kernel, D, monkeypatch):
    if kernel:
        use_kernel(monkeypatch)
    monkeypatch.setattr(norm, "PROGRAMS", 4)  # ten rows: some programs have three, some two
    rng = np.random.default_rng(0)
    x, d, d_skip = (jnp.asarray(rng.normal(3.0, 2.0, (2, 5, D)), dtype) for _ in range(3))
    scale, bias = rng.normal(1.0, 0.3, (2, D)).astype(np.float32)
    (skip, y), pull = jax.vjp(norm.branch_norm, x, scale, bias)

    x64, d64 = (np.asarray(array, np.float64) for array in (x, d))
    deviation = np.sqrt(x64.var(-1, keepdims=True) + norm.EPSILON)
    z = (x64 - x64.mean(-1, keepdims=True)) / deviation
    d_z = d64 * scale
    d_x = (d_z - d_z.mean(-1, keepdims=True) - z * (d_z * z).mean(-1, keepdims=True)) / deviation
    want = z * scale + bias, d_x + np.asarray(d_skip, np.float64), (d64 * z).sum((0, 1)), d64.sum((0, 1))
    np.testing.assert_array_equal(skip, x)
    for have, expected, kind in zip((y, *pull((d_skip, d))), want, (dtype, dtype, "float32", "float32")):
        assert have.dtype == kind
        np.testing.assert_allclose(
            np.asarray(have, np.float64), expected, rtol=TOLERANCE[kind], atol=TOLERANCE[kind] * 4
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_a_residual_connection_the_gradients_are_those_of_the_norm_alone(dtype):
    rng = np.random.default_rng(0)
    x, d = (jnp.asarray(rng.normal(3.0, 2.0, (2, 5, 96)), dtype) for _ in range(2))
    scale, bias = rng.normal(1.0, 0.3, (2, 96)).astype(np.float32)
    y, pull = jax.vjp(norm.layer_norm, x, scale, bias)
    (_, branch_y), branch_pull = jax.vjp(norm.branch_norm, x, scale, bias)
    np.testing.assert_array_equal(y, branch_y)
    jax.tree.map(np.testing.assert_array_equal, pull(d), branch_pull((jnp.zeros_like(x), d)))


@needs_triton
@pytest.mark.parametrize(
    ("axes", "pre_norm"),
    [((2, 2, 2), True), *(pytest.param(None, pre, marks=pytest.mark.slow) for pre in (True, False))],
)
def test_gradients_of_a_model_with_the_kernel_equal_those_without(config, axes, pre_norm, monkeypatch):
    config = dataclasses.replace(config, pre_norm=pre_norm)
    params = decoder.init_params(jax.random.key(0), config)
    tokens_BT = np.random.default_rng(0).integers(4, config.vocab_size, (4, 16)).astype(np.int32)
    batch = tokens_BT, np.ones_like(tokens_BT), np.broadcast_to(np.arange(16, dtype=np.int32), (4, 16))
    mesh = axes and sharding.make_mesh(*axes)

    def gradients() -> dict:
        def loss(params: dict) -> jax.Array:
            hidden_BTD = decoder.forward(params, *batch, config, remat="dots")
            return (hidden_BTD * jnp.cos(jnp.arange(hidden_BTD.size).reshape(hidden_BTD.shape))).sum()

        if mesh is None:
            return jax.jit(jax.grad(loss))(params)
        with jax.set_mesh(mesh):
            return jax.jit(jax.grad(loss))(jax.device_put(params, sharding.parameter_shardings(params, mesh)))

    want = gradients()
    use_kernel(monkeypatch)
    jax.clear_caches()
    have = gradients()
    largest = max(float(jnp.abs(expected).max()) for expected in jax.tree.leaves(want))
    for expected, result in zip(jax.tree.leaves(want), jax.tree.leaves(have)):
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6 * largest)

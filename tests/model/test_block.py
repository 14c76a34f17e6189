"""The parts of a block: its norm against float64, its dropout against chance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optiml_jax.model import block


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_norm_and_its_gradients_equal_float64(dtype):
    rng = np.random.default_rng(0)
    x, d = (jnp.asarray(rng.normal(3.0, 2.0, (2, 5, 96)), dtype) for _ in range(2))
    scale, bias = rng.normal(1.0, 0.3, (2, 96)).astype(np.float32)
    y, pull = jax.vjp(block.layer_norm, x, scale, bias)

    x64, d64 = (np.asarray(array, np.float64) for array in (x, d))
    deviation = np.sqrt(x64.var(-1, keepdims=True) + block.Norm.EPSILON)
    z = (x64 - x64.mean(-1, keepdims=True)) / deviation
    d_z = d64 * scale
    d_x = (d_z - d_z.mean(-1, keepdims=True) - z * (d_z * z).mean(-1, keepdims=True)) / deviation
    want = z * scale + bias, d_x, (d64 * z).sum((0, 1)), d64.sum((0, 1))
    tolerance = {"float32": 2e-6, "bfloat16": 2**-8}
    for have, expected, kind in zip((y, *pull(d)), want, (dtype, dtype, "float32", "float32")):
        assert have.dtype == kind
        np.testing.assert_allclose(
            np.asarray(have, np.float64), expected, rtol=tolerance[kind], atol=tolerance[kind] * 4
        )


def test_dropout_drops_its_share_scales_the_rest_and_repeats_nothing():
    key = jax.random.key(5)
    shape = (64, 128, 96)
    retained = np.asarray(block.dropout(jnp.ones(shape), 0.1, key))
    np.testing.assert_allclose(np.unique(retained), [0, 1 / 0.9], rtol=1e-6)
    dropped = retained == 0
    deviation = (0.09 / dropped.size) ** 0.5
    assert abs(dropped.mean() - 0.1) < 4 * deviation
    for axis in range(3):  # of every row, column and place, by the binomial's own spread
        others = tuple(other for other in range(3) if other != axis)
        spread = dropped.mean(others).std() / (0.09 * shape[axis] / dropped.size) ** 0.5
        assert 0.7 < spread < 1.35
    other_keys = [jax.random.fold_in(key, 0), jax.random.fold_in(key, 1), jax.random.key(6)]
    others = [np.asarray(block.dropout(jnp.ones(shape), 0.1, other)) == 0 for other in other_keys]
    shifted = [np.roll(dropped, 1, axis) for axis in range(3)]
    for other in (*others, *shifted):
        assert abs((dropped & other).mean() - 0.01) < 4 * (0.01 / dropped.size) ** 0.5
    np.testing.assert_array_equal(retained, block.dropout(jnp.ones(shape), 0.1, key))


def test_every_bit_of_the_random_numbers_is_even_and_independent_of_the_others():
    bits = np.asarray(block.random_bits(jax.random.key(0), (64, 1024)))
    binary = np.unpackbits(bits.reshape(-1, 1).view(np.uint8), axis=1).astype(np.float64) * 2 - 1
    limit = 5 / len(binary) ** 0.5
    assert abs(binary.mean(0)).max() < limit
    assert abs(binary.T @ binary / len(binary) - np.eye(32)).max() < limit
    for step in (1, 2, 1024):  # the next column, the one after, the next row
        assert abs(binary[step:].T @ binary[:-step] / len(binary)).max() < limit
    assert len(np.unique(bits)) > 0.9999 * bits.size

"""Looking tokens up in a table spread over devices, against indexing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optiml_jax.model.lookup import look_up
from tests.meshes import MESHES, mesh_of

RNG = np.random.default_rng(0)
TABLE_VD = RNG.normal(size=(64, 32)).astype(np.float32)
TOKENS_BT = RNG.integers(0, 64, (8, 16)).astype(np.int32)
WEIGHTS_BTD = RNG.normal(size=(8, 16, 32)).astype(np.float32)


def weighted(table_VD, tokens_BT, weights_BTD):
    return (look_up(table_VD, tokens_BT).astype(jnp.float32) * weights_BTD).sum()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mesh_name", MESHES)
def test_rows_and_their_gradients_are_those_of_indexing_on_every_mesh(mesh_name, dtype):
    table_VD = jnp.asarray(TABLE_VD, dtype)
    want_VD = np.zeros_like(TABLE_VD)
    np.add.at(want_VD, TOKENS_BT, WEIGHTS_BTD.astype(dtype).astype(np.float32))
    with jax.set_mesh(mesh_of(mesh_name)):
        rows_BTD = jax.jit(look_up)(table_VD, TOKENS_BT)
        grad_VD = jax.jit(jax.grad(weighted))(table_VD, TOKENS_BT, WEIGHTS_BTD)
    np.testing.assert_array_equal(np.asarray(rows_BTD), np.asarray(table_VD)[TOKENS_BT])
    tolerance = 1e-5 if dtype == "float32" else 2**-8  # the result is rounded to the table's dtype once
    np.testing.assert_allclose(np.asarray(grad_VD, np.float32), want_VD, rtol=tolerance, atol=1e-5)


def test_shapes_that_the_mesh_does_not_divide_are_looked_up_too():
    """A decoding step: three rows of one token over eight devices."""
    with jax.set_mesh(mesh_of("2x2x2")):
        rows_BTD = jax.jit(look_up)(TABLE_VD, TOKENS_BT[:3, :1])
    np.testing.assert_array_equal(np.asarray(rows_BTD), TABLE_VD[TOKENS_BT[:3, :1]])

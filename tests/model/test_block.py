"""A block's dropout against chance."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from optiml_jax.model import block, decoder, sharding
from tests.meshes import mesh_of


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


def test_a_block_leaves_its_result_split_over_positions(config):
    """Whatever the sharding of its input, so that what is saved between layers is split over all devices."""
    mesh = mesh_of("2x2x2")
    with jax.set_mesh(mesh):
        layer = jax.tree.map(lambda x: x[0], decoder.init_params(jax.random.key(0), config)["blocks"])
        whole = NamedSharding(mesh, PartitionSpec())
        forward = jax.jit(
            lambda layer, x_BTD: block.block_forward(
                nnx.merge(decoder.block_graphdef(config), layer), x_BTD, lambda q, k, v: (v, None), config
            )[0],
            in_shardings=(whole, whole),
        )
        x_BTD = jnp.ones((8, 16, config.model_dim))
        compiled = forward.lower(layer, x_BTD).compile()
    expected = NamedSharding(mesh, sharding.spec("BTD", sharding.RESIDUAL))
    assert compiled.output_shardings.is_equivalent_to(expected, 3)

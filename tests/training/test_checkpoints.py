"""Checkpoints move between meshes without changing a bit."""

import contextlib

import jax
import numpy as np
import pytest

from optiml_jax.training import checkpoints as ckpt
from optiml_jax.training import step
from optiml_jax.training.optimizer import Optimization
from optiml_jax.training.step import Computation
from tests.meshes import MESHES, mesh_of

SETTINGS, COMPUTATION = Optimization(), Computation(precision="fp16")


@pytest.fixture(scope="module")
def abstract(config):
    return step.abstract_state(config, SETTINGS, COMPUTATION)


def on_mesh(abstract, name):
    """The state as `ShapeDtypeStruct`s that lie on a mesh."""
    return ckpt.with_shardings(abstract, step.state_shardings(abstract, SETTINGS, mesh_of(name)))


@pytest.fixture(scope="module")
def values(abstract):
    """Every array of a state, moments and counters included, filled with random bits that are numbers."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: np.asarray(1000 * rng.normal(size=x.shape), x.dtype), abstract)


@pytest.mark.parametrize("saved_on", MESHES)
def test_a_checkpoint_restores_bit_identically_on_every_mesh(saved_on, abstract, values, tmp_path):
    state = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), values, on_mesh(abstract, saved_on))
    with contextlib.closing(ckpt.Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(7, state, {})
        checkpoints.wait()
        for name in MESHES:
            like = on_mesh(abstract, name)
            restored = checkpoints.restore(7, like)
            jax.tree.map(np.testing.assert_array_equal, restored, values)
            jax.tree.map(lambda x, want: x.sharding == want.sharding or pytest.fail(str(x.sharding)), restored, like)
            jax.tree.map(lambda x, want: x.dtype == want.dtype or pytest.fail(str(x.dtype)), restored, like)

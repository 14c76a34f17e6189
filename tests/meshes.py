"""Meshes over the eight CPU devices that every test has."""

import jax
import numpy as np
import pytest

from optiml_jax.model import sharding

MESHES = {"1x1x1": (1, 1, 1), "8x1x1": (8, 1, 1), "1x8x1": (1, 8, 1), "1x1x8": (1, 1, 8), "2x2x2": (2, 2, 2)}
# for tests that take long: one device and all three axes at once, the single axes with the slow tests
EVERY_MESH = [name if name in ("1x1x1", "2x2x2") else pytest.param(name, marks=pytest.mark.slow) for name in MESHES]


def mesh_of(name: str) -> jax.sharding.Mesh:
    shape = MESHES[name]
    return sharding.make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])

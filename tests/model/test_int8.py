"""Kernels as integers against the same kernels in floating point, computed and loaded in every way."""

import dataclasses

import jax
import numpy as np
import pytest

from optiml_jax import weights
from optiml_jax.common.errors import UserError
from optiml_jax.model import decoder, int8, sharding, trainable
from optiml_jax.model.adapter import merge
from optiml_jax.weights import save_hf
from tests.meshes import EVERY_MESH, mesh_of
from tests.model.test_adapter import LORA, forward, loss, random_params


@pytest.fixture(scope="module")
def integers(config):
    """The small model with int8 kernels."""
    return dataclasses.replace(config, kernels="int8", dropout=0.0)


def test_an_output_is_rounded_to_a_255th_of_its_range():
    kernel = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)  # inputs 5 and 4
    kernel[..., 1] = 0
    kernel[2, 3, 2] = -9
    values, scale = map(np.asarray, int8.quantize(kernel, (0, 1)))
    assert values.dtype == np.int8 and scale.shape == (3,)
    np.testing.assert_allclose(scale, np.abs(kernel.astype(np.float64)).max((0, 1)) / 127, rtol=1e-7)
    assert values[2, 3, 2] == -127 and not values[..., 1].any()
    assert (np.abs(values.astype(np.float64) * scale - kernel) <= scale / 2 * (1 + 1e-5)).all()


@pytest.mark.parametrize("mesh_name", EVERY_MESH)
def test_outputs_and_gradients_equal_those_of_float_kernels(integers, mesh_name):
    """With adapters, whose gradients are compared, on the float kernels that the integers stand for."""
    config = dataclasses.replace(integers, adapter=LORA)
    params = random_params(config)
    adapters, base = trainable.split(params, "lora")

    def gradients(adapters, base, config):
        return jax.jit(jax.value_and_grad(lambda part: loss(trainable.join(part, base), config)))(adapters)

    with jax.set_mesh(mesh_of("1x1x1")):
        want, want_grads = gradients(adapters, merge(base, None), dataclasses.replace(config, kernels="float"))
    mesh = mesh_of(mesh_name)
    placed = jax.device_put(params, sharding.parameter_shardings(params, mesh))
    with jax.set_mesh(mesh):
        have, have_grads = gradients(*trainable.split(placed, "lora"), config)
    assert abs(float(have) - float(want)) < 1e-6
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), have_grads, want_grads)


def test_layers_apart_are_those_of_the_scan(integers):
    params = jax.jit(lambda: decoder.init_params(jax.random.key(0), integers))()
    scanned, unrolled = (forward(params, integers, layers=layers) for layers in ("scan", "unrolled"))
    np.testing.assert_allclose(scanned, unrolled, atol=1e-5)


@pytest.mark.parametrize("mesh_name", EVERY_MESH)
def test_weights_are_rounded_as_they_are_loaded(config, integers, tmp_path, mesh_name):
    save_hf(decoder.init_params(jax.random.key(1), config), config, None, tmp_path / "hf")
    want = int8.quantize_blocks(weights.load(tmp_path / "hf", config), decoder.abstract_params(integers))
    shardings = sharding.parameter_shardings(decoder.abstract_params(integers), mesh_of(mesh_name))
    for separate in (False, True):
        have = weights.load(tmp_path / "hf", integers, shardings, separate=separate)
        decoder.check_params(have, integers, "loaded")
        for name, part in want["blocks"].items():
            for leaf, array in part.items():
                loaded = have["blocks"][name][leaf]
                np.testing.assert_array_equal(np.stack([np.asarray(layer) for layer in loaded]), array)
                assert loaded.dtype == array.dtype


def test_an_unknown_form_is_named(config):
    with pytest.raises(UserError, match=r"OPTConfig\.kernels: 'int4' is unknown; use 'float' or 'int8'"):
        dataclasses.replace(config, kernels="int4")

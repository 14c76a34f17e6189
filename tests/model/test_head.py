"""The label-only head against the dense loss in plain jax.numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optiml_jax.model.head import label_nats
from tests.meshes import EVERY_MESH, mesh_of


def dense_nats(hidden_BTD, embedding_VD, targets_BT, label_mask_BT):
    log_BTV = jax.nn.log_softmax(hidden_BTD @ embedding_VD.T)
    return -jnp.where(label_mask_BT, jnp.take_along_axis(log_BTV, targets_BT[..., None], -1)[..., 0], 0.0).sum()


def inputs(share: float):
    rng = np.random.default_rng(7)
    hidden_BTD = rng.normal(size=(8, 24, 32)).astype(np.float32)
    embedding_VD = rng.normal(size=(96, 32)).astype(np.float32)
    mask_BT = rng.random((8, 24)) < share
    if 0 < share < 1:
        mask_BT[1], mask_BT[5] = False, True  # a device without labels and one with nothing else
    return hidden_BTD, embedding_VD, rng.integers(0, 96, (8, 24)).astype(np.int32), mask_BT


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("mesh", EVERY_MESH)
def test_loss_and_gradients_equal_the_dense_loss_on_every_mesh(mesh, share):
    arguments = inputs(share)
    scale = 0.7  # a cotangent other than one, as loss scaling sends
    want, want_grads = jax.value_and_grad(lambda h, e: scale * dense_nats(h, e, *arguments[2:]), (0, 1))(*arguments[:2])
    with jax.set_mesh(mesh_of(mesh)):
        loss = jax.jit(jax.value_and_grad(lambda h, e, t, m: scale * label_nats(h, e, t, m, chunk=16).sum(), (0, 1)))
        have, have_grads = loss(*arguments)
    np.testing.assert_allclose(have, want, rtol=1e-6, atol=1e-6)
    for a, b in zip(have_grads, want_grads):
        np.testing.assert_allclose(a, b, atol=1e-6 * max(1.0, float(jnp.abs(b).max())))


def test_a_chunk_larger_than_the_batch_and_one_that_does_not_divide_it_drop_no_label():
    arguments = inputs(1.0)
    want = dense_nats(*arguments)
    with jax.set_mesh(mesh_of("1x1x1")):
        for chunk in (7, 500):
            have = jax.jit(lambda *a, chunk=chunk: label_nats(*a, chunk=chunk).sum())(*arguments)
            np.testing.assert_allclose(have, want, rtol=1e-6)


def test_gradients_of_bfloat16_are_summed_in_float32_over_many_chunks():
    """As close to those of float32 as rounding inputs and results once allows: sums in bfloat16 are not."""
    rng = np.random.default_rng(3)
    hidden_BTD, embedding_VD = (jnp.asarray(rng.normal(size=size), jnp.bfloat16) for size in ((8, 256, 32), (96, 32)))
    targets_BT, mask_BT = rng.integers(0, 96, (8, 256)).astype(np.int32), np.ones((8, 256), bool)
    exact = [np.asarray(x, np.float32) for x in (hidden_BTD, embedding_VD)]
    want = jax.grad(lambda h, e: dense_nats(h, e, targets_BT, mask_BT), (0, 1))(*exact)
    with jax.set_mesh(mesh_of("1x1x1")):
        loss = jax.jit(jax.grad(lambda h, e: label_nats(h, e, targets_BT, mask_BT, chunk=16).sum(), (0, 1)))
        have = loss(hidden_BTD, embedding_VD)
    for ours, theirs in zip(have, want):
        assert np.linalg.norm(np.asarray(ours, np.float32) - theirs) < 2**-8 * np.linalg.norm(theirs)


def test_each_label_has_its_own_nats_and_the_others_have_none():
    arguments = inputs(0.2)
    log_BTV = jax.nn.log_softmax(arguments[0] @ arguments[1].T)
    want_BT = -np.take_along_axis(np.asarray(log_BTV), arguments[2][..., None], -1)[..., 0] * arguments[3]
    with jax.set_mesh(mesh_of("2x2x2")):
        have_BT = jax.jit(lambda *a: label_nats(*a, chunk=16))(*arguments)
    np.testing.assert_allclose(have_BT, want_BT, atol=1e-5)


@pytest.mark.parametrize("mesh", EVERY_MESH)
def test_its_memory_is_a_fraction_of_that_of_the_dense_loss_on_every_mesh(mesh):
    """Returns the memory of the compiled loss and gradients; the dense one holds float32 logits of all positions
    twice."""
    shapes = ((32, 128, 32), jnp.float32), ((4096, 32), jnp.float32), ((32, 128), jnp.int32), ((32, 128), jnp.bool_)
    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]

    def temporaries(loss):
        compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).trace(*arguments).lower().compile()
        return compiled.memory_analysis().temp_size_in_bytes

    with jax.set_mesh(mesh_of(mesh)):
        dense, ours = temporaries(dense_nats), temporaries(lambda *a: label_nats(*a, chunk=16).sum())
    assert ours < dense / 4, (ours, dense)

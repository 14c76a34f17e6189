"""Adapters against the same products merged into the kernels, for every way in which blocks are computed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optiml_jax.common.errors import UserError
from optiml_jax.model import block, decoder, sharding
from optiml_jax.model.adapter import NAMES, TARGETS, Lora, merge
from optiml_jax.model.head import label_nats
from tests.meshes import EVERY_MESH, mesh_of

LORA = Lora(rank=4, alpha=8)


@pytest.fixture(scope="module")
def adapted(config):
    """The small model with adapters everywhere."""
    return dataclasses.replace(config, adapter=LORA, dropout=0.0)


def is_adapter(path: tuple) -> bool:
    return path[-1].key in NAMES


def random_params(config, seed: int = 0) -> dict:
    """Parameters whose adapters are not zero, and biases that are not either."""
    params = jax.jit(lambda key: decoder.init_params(key, config))(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.float32(0.1 * rng.normal(size=x.shape)) if is_adapter(path) else x, params
    )


def forward(params, config, **options):
    tokens_BT = np.random.default_rng(1).integers(4, config.vocab_size, (8, 32)).astype(np.int32)
    ones_BT, positions_BT = np.ones_like(tokens_BT), np.tile(np.arange(32, dtype=np.int32), (8, 1))
    return decoder.forward(params, tokens_BT, ones_BT, positions_BT, config, **options)


def loss(params, config, **options):
    hidden_BTD = forward(params, config, **options)
    targets_BT = np.random.default_rng(2).integers(4, config.vocab_size, (8, 32)).astype(np.int32)
    return label_nats(hidden_BTD, params["token_embedding"], targets_BT, np.ones((8, 32), bool)).mean()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_new_adapters_change_no_bit(adapted, dtype):
    params = decoder.init_params(jax.random.key(0), adapted)
    base = decoder.init_params(jax.random.key(0), adapted.base)
    for (_, want), (path, have) in zip(
        jax.tree_util.tree_leaves_with_path(base),
        [(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params) if not is_adapter(path)],
        strict=True,
    ):
        np.testing.assert_array_equal(have, want, err_msg=str(path))
    have, want = (
        jax.jit(lambda p, c=c: forward(p, c, dtype=dtype))(p) for p, c in ((params, adapted), (base, adapted.base))
    )
    np.testing.assert_array_equal(np.asarray(have, np.float32), np.asarray(want, np.float32))


@pytest.mark.parametrize(
    ("targets", "rank_stabilized"),
    [(TARGETS, False), (("out", "down"), True), pytest.param(("query", "value"), False, marks=pytest.mark.slow)],
)
def test_outputs_and_gradients_equal_those_of_merged_kernels(adapted, targets, rank_stabilized):
    lora = dataclasses.replace(LORA, targets=targets, rank_stabilized=rank_stabilized)
    assert lora.scale == (4 if rank_stabilized else 2)
    config = dataclasses.replace(adapted, adapter=lora)
    params = random_params(config)
    assert {name for name, part in params["blocks"].items() if NAMES[0] in part} == set(targets)
    with jax.set_mesh(mesh_of("1x1x1")):
        have, have_grads = jax.jit(jax.value_and_grad(lambda p: loss(p, config)))(params)
        want, want_grads = jax.jit(jax.value_and_grad(lambda p: loss(merge(p, lora), config.base)))(params)
        plain = jax.jit(lambda p: loss(p, config.base))(decoder.init_params(jax.random.key(0), config.base))
    assert abs(float(have - want)) < 1e-6 < abs(float(have - plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), have_grads, want_grads)
    decoder.check_params(merge(params, lora), config.base, "merged")


@pytest.mark.parametrize("mesh_name", EVERY_MESH)
def test_meshes_layers_and_remat_change_nothing(adapted, mesh_name):
    config = dataclasses.replace(adapted, adapter=dataclasses.replace(LORA, dropout=0.3), dropout=0.1)
    params, key = random_params(config), jax.random.key(3)
    with jax.set_mesh(mesh_of("1x1x1")):
        want, want_grads = jax.jit(jax.value_and_grad(lambda p: loss(p, config, dropout_key=key)))(params)
    mesh = mesh_of(mesh_name)
    placed = jax.device_put(params, sharding.parameter_shardings(params, mesh))
    with jax.set_mesh(mesh):
        for remat, layers in (("full", "scan"), ("dots", "unrolled"))[: 2 if mesh.size == 1 else 1]:
            options = {"dropout_key": key, "remat": remat, "layers": layers}
            have, have_grads = jax.jit(jax.value_and_grad(lambda p, o=options: loss(p, config, **o)))(placed)
            assert abs(float(have) - float(want)) < 1e-6
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), have_grads, want_grads)


def test_packed_documents_are_those_of_rows_of_their_own(adapted):
    params, rng = random_params(adapted), np.random.default_rng(4)
    documents = [rng.integers(4, adapted.vocab_size, length).astype(np.int32) for length in (11, 20, 7)]
    packed = np.concatenate(documents)[None]
    segments = np.repeat(np.arange(1, 4, dtype=np.int32), list(map(len, documents)))[None]
    positions = np.concatenate([np.arange(len(ids), dtype=np.int32) for ids in documents])[None]
    have = np.split(np.asarray(decoder.forward(params, packed, segments, positions, adapted))[0], np.cumsum((11, 20)))
    for ids, part in zip(documents, have, strict=True):
        where = np.arange(len(ids), dtype=np.int32)[None]
        alone = decoder.forward(params, ids[None], np.ones_like(ids[None]), where, adapted)
        np.testing.assert_allclose(part, alone[0], atol=2e-6)


def test_dropout_is_of_the_adapters_input_alone(adapted):
    """Without it, and with new adapters, a key changes nothing; each matrix and layer drops other units."""
    key = jax.random.key(3)
    config = dataclasses.replace(adapted, adapter=dataclasses.replace(LORA, dropout=0.5))
    new, params = jax.jit(lambda: decoder.init_params(jax.random.key(0), config))(), random_params(config)
    for arguments, equal in (((new, config), True), ((params, adapted), True), ((params, config), False)):
        without, with_key = (np.asarray(forward(*arguments, dropout_key=k)) for k in (None, key))
        assert np.array_equal(without, with_key) == equal


def test_every_matrix_of_every_layer_drops_other_units(adapted, monkeypatch):
    keys = []
    original = block.dropout

    def recorded(x, rate, key):
        keys.append(tuple(np.asarray(jax.random.key_data(key)).tolist()))
        return original(x, rate, key)

    monkeypatch.setattr(block, "dropout", recorded)
    config = dataclasses.replace(adapted, adapter=dataclasses.replace(LORA, dropout=0.5), dropout=0.5)
    params = jax.jit(lambda: decoder.init_params(jax.random.key(0), config))()
    forward(params, config, dropout_key=jax.random.key(3), layers="unrolled")
    assert len(keys) == config.layers * (len(TARGETS) + 2) == len(set(keys))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "Lora.rank is 0"),
        ({"targets": ("querry",)}, "no matrix of Lora.targets querry; did you mean query"),
        ({"targets": ()}, "Lora.targets is empty"),
        ({"dropout": 1.0}, "Lora.dropout is 1.0"),
        ({"alpha": -1}, "Lora.alpha is -1"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Lora(**options)

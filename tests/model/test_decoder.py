"""The decoder against transformers' OPT with the same random weights, for every architectural variant."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from optiml_jax.common.errors import UserError
from optiml_jax.model import decoder, sharding
from optiml_jax.model.config import OPTConfig
from tests.hf import VARIANTS, our_logits, params_of, torch_model


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(variant):
    config = VARIANTS[variant]
    model = torch_model(config)
    params = params_of(model, config)
    tokens_BT = np.random.default_rng(0).integers(4, config.vocab_size, (2, 48)).astype(np.int32)
    with torch.no_grad():
        want = model(torch.tensor(tokens_BT)).logits.numpy()
    positions_BT = np.broadcast_to(np.arange(48, dtype=np.int32), tokens_BT.shape)
    have = our_logits(params, tokens_BT, np.ones_like(tokens_BT), positions_BT, config)
    np.testing.assert_allclose(have, want, atol=2e-5)  # float32, logits of size 1-10


def test_every_layer_drops_other_units(monkeypatch):
    config, keys, forward = VARIANTS["pre_norm"], [], decoder.block_forward

    def record(block, x_BTD, attend, config, key):
        keys.append(tuple(jax.random.key_data(key).tolist()))
        return forward(block, x_BTD, attend, config, key)

    monkeypatch.setattr(decoder, "block_forward", record)
    ones_BT = jnp.ones((1, 8), jnp.int32)
    params = decoder.init_params(jax.random.key(0), config)
    decoder.forward(params, ones_BT, ones_BT, ones_BT, config, layers="unrolled", dropout_key=jax.random.key(1))
    assert len(keys) == len(set(keys)) == config.layers > 1


@pytest.mark.parametrize("variant", ["pre_norm", "post_norm_projected"])
def test_left_padding_does_not_change_logits(variant):
    config = VARIANTS[variant]
    model = torch_model(config)
    params = params_of(model, config)
    rng = np.random.default_rng(1)
    tokens_BT, mask_BT = np.ones((2, 40), np.int32), np.zeros((2, 40), np.int32)
    for row, length in enumerate((40, 23)):
        tokens_BT[row, 40 - length :] = rng.integers(4, config.vocab_size, length)
        mask_BT[row, 40 - length :] = 1
    with torch.no_grad():
        want = model(torch.tensor(tokens_BT), attention_mask=torch.tensor(mask_BT)).logits.numpy()
    positions_BT = np.maximum(mask_BT.cumsum(1) - 1, 0).astype(np.int32)
    have = our_logits(params, tokens_BT, mask_BT, positions_BT, config)
    np.testing.assert_allclose(have[mask_BT == 1], want[mask_BT == 1], atol=2e-5)


@pytest.mark.parametrize("variant", ["pre_norm", "post_norm_projected"])
def test_packed_documents_have_the_logits_they_have_alone(variant):
    config = VARIANTS[variant]
    params = params_of(torch_model(config), config)
    rng = np.random.default_rng(2)
    documents = [rng.integers(4, config.vocab_size, n).astype(np.int32) for n in (7, 1, 20, 13)]
    tokens_BT = np.concatenate([*documents, np.ones(7, np.int32)])[None]
    segments_BT = np.concatenate([np.full(len(d), i + 1, np.int32) for i, d in enumerate([*documents, range(7)])])[None]
    segments_BT[segments_BT == 5] = 0
    positions_BT = np.concatenate([np.arange(len(d), dtype=np.int32) for d in [*documents, range(7)]])[None]
    packed = our_logits(params, tokens_BT, segments_BT, positions_BT, config)[0]
    start = 0
    for document in documents:
        n = len(document)
        alone = our_logits(params, document[None], np.ones((1, n), np.int32), np.arange(n)[None], config)[0]
        np.testing.assert_allclose(packed[start : start + n], alone, atol=1e-5)
        start += n


def test_what_is_kept_and_how_layers_are_written_change_no_gradient():
    config = VARIANTS["pre_norm"]
    params = decoder.init_params(jax.random.key(0), config)
    tokens_BT = jnp.asarray(np.random.default_rng(3).integers(4, 160, (2, 32)), jnp.int32)
    ones_BT, positions_BT = jnp.ones_like(tokens_BT), jnp.arange(32)[None].repeat(2, 0)

    def loss(params, remat, layers):
        key = jax.random.key(1)
        hidden = decoder.forward(
            params, tokens_BT, ones_BT, positions_BT, config, remat=remat, layers=layers, dropout_key=key
        )
        return jnp.square(decoder.project_vocabulary(hidden, params["token_embedding"])).mean()

    gradient = jax.jit(jax.grad(loss), static_argnums=(1, 2))
    want = gradient(params, "none", "scan")
    unrolled = [("none", "unrolled"), ("full", "unrolled")]
    for remat, layers in [*itertools.product(decoder.REMAT, ("scan",)), *unrolled]:
        have = gradient(params, remat, layers)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8, rtol=1e-5), have, want)


def test_what_attention_keeps_is_stacked_the_same_whether_layers_are_scanned_or_unrolled():
    config = VARIANTS["pre_norm"]
    params = decoder.init_params(jax.random.key(0), config)
    x_BTD = jax.random.normal(jax.random.key(1), (2, 8, config.model_dim))
    given_N = jnp.arange(config.layers, dtype=jnp.float32)

    def attend_for(number):
        return lambda q, k, v: (v * number, {"keys": k, "number": number})

    scanned, unrolled = (
        decoder.run_blocks(params, x_BTD, given_N, attend_for, config, unrolled=unrolled) for unrolled in (False, True)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), scanned, unrolled)
    np.testing.assert_array_equal(scanned[1]["number"], given_N)


def test_layers_are_unrolled_on_gpus_that_hold_them_whole(monkeypatch):
    decide = decoder.LAYERS["auto"]
    assert not decide()  # a CPU
    monkeypatch.setattr(sharding, "platform", lambda: "gpu")
    assert decide()
    for shape, unrolled in (((2, 1, 1), True), ((1, 2, 1), False), ((2, 1, 2), False)):
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh(shape, sharding.AXES)):
            assert decide() == unrolled


def test_a_renamed_or_reshaped_parameter_is_refused_by_name():
    config = VARIANTS["pre_norm"]
    params = decoder.init_params(jax.random.key(0), config)
    decoder.check_params(params, config, "weights")
    renamed = params | {"blocks": {("zzz" if k == "query" else k): v for k, v in params["blocks"].items()}}
    with pytest.raises(UserError, match="blocks/query/bias is missing"):
        decoder.check_params(renamed, config, "weights")
    with pytest.raises(UserError, match=r"token_embedding has shape \(159, 64\).*\(160, 64\)"):
        decoder.check_params(params | {"token_embedding": params["token_embedding"][:-1]}, config, "weights")


def test_the_125m_shape_has_125m_parameters():
    assert decoder.parameter_count(OPTConfig()) == 125_239_296  # facebook/opt-125m

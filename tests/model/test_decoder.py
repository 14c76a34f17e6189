"""The decoder against transformers' OPT with the same random weights, for every architectural variant."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from optiml_jax.errors import UserError
from optiml_jax.model import block, decoder, sharding
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
    for remat, layers in itertools.product(decoder.REMAT, ("scan", "unrolled")):
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
        decoder.scan_blocks(params, x_BTD, given_N, attend_for, config, unrolled=unrolled) for unrolled in (False, True)
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
    for have, wanted, kind in zip((y, *pull(d)), want, (dtype, dtype, "float32", "float32")):
        assert have.dtype == kind
        np.testing.assert_allclose(np.asarray(have, np.float64), wanted, rtol=tolerance[kind], atol=tolerance[kind] * 4)


def test_dropout_drops_its_share_scales_the_rest_and_repeats_nothing():
    key = jax.random.key(5)
    shape = (64, 128, 96)
    kept = np.asarray(block.dropout(jnp.ones(shape), 0.1, key))
    np.testing.assert_allclose(np.unique(kept), [0, 1 / 0.9], rtol=1e-6)
    dropped = kept == 0
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
    np.testing.assert_array_equal(kept, block.dropout(jnp.ones(shape), 0.1, key))


def test_every_bit_of_the_random_numbers_is_even_and_independent_of_the_others():
    bits = np.asarray(block.random_bits(jax.random.key(0), (64, 1024)))
    binary = np.unpackbits(bits.reshape(-1, 1).view(np.uint8), axis=1).astype(np.float64) * 2 - 1
    limit = 5 / len(binary) ** 0.5
    assert abs(binary.mean(0)).max() < limit
    assert abs(binary.T @ binary / len(binary) - np.eye(32)).max() < limit
    for step in (1, 2, 1024):  # the next column, the one after, the next row
        assert abs(binary[step:].T @ binary[:-step] / len(binary)).max() < limit
    assert len(np.unique(bits)) > 0.9999 * bits.size


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

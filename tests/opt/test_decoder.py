"""The decoder against transformers' OPT with the same random weights, for every architectural variant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from optiml_jax.errors import UserError
from optiml_jax.opt import decoder
from optiml_jax.opt.config import OPTConfig

SMALL = {"vocab_size": 160, "layers": 3, "model_dim": 64, "heads": 4, "ffn_dim": 96, "max_positions": 64}
VARIANTS = {
    "pre_norm": OPTConfig(**SMALL),
    "post_norm_projected": OPTConfig(**SMALL, pre_norm=False, embedding_dim=32),
    "head_size_80": OPTConfig(**SMALL | {"model_dim": 160, "heads": 2}),
    "gelu": OPTConfig(**SMALL, activation="gelu"),
}


def torch_model(config: OPTConfig) -> transformers.OPTForCausalLM:
    """transformers' OPT of the same shape, random weights large enough to make every term count."""
    torch.manual_seed(0)
    model = transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.model_dim,
            num_hidden_layers=config.layers,
            ffn_dim=config.ffn_dim,
            num_attention_heads=config.heads,
            max_position_embeddings=config.max_positions,
            do_layer_norm_before=config.pre_norm,
            word_embed_proj_dim=config.embedding_width,
            activation_function=config.activation,
            init_std=0.1,
            dropout=0.0,
            attn_implementation="eager",
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def params_of(model: transformers.OPTForCausalLM, config: OPTConfig) -> dict:
    """Our tree from transformers' state, written out by hand: the oracle for the weight loader too."""
    state = {name.removeprefix("model.decoder."): value.numpy() for name, value in model.state_dict().items()}
    D, H, K, N = config.model_dim, config.heads, config.head_dim, config.layers

    def stack(name: str, shape=None, transpose: bool = True) -> np.ndarray:
        leaves = [state[f"layers.{n}.{name}"] for n in range(N)]
        return np.stack([(x.T if transpose and x.ndim == 2 else x).reshape(shape or x.T.shape) for x in leaves])

    def affine(name: str, kernel: tuple, bias: tuple) -> dict:
        return {"kernel": stack(f"{name}.weight", kernel), "bias": stack(f"{name}.bias", bias)}

    def norm(name: str) -> dict:
        return {"scale": stack(f"{name}.weight"), "bias": stack(f"{name}.bias")}

    heads = {
        ours: affine(f"self_attn.{theirs}_proj", (D, H, K), (H, K))
        for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"))
    }
    params = {
        "token_embedding": state["embed_tokens.weight"],
        "position_embedding": state["embed_positions.weight"],
        "blocks": heads
        | {
            "attention_norm": norm("self_attn_layer_norm"),
            "mlp_norm": norm("final_layer_norm"),
            "out": affine("self_attn.out_proj", (H, K, D), (D,)),
            "up": affine("fc1", (D, config.ffn_dim), (config.ffn_dim,)),
            "down": affine("fc2", (config.ffn_dim, D), (D,)),
        },
    }
    if config.projects_embedding:
        params |= {"project_in": state["project_in.weight"].T, "project_out": state["project_out.weight"].T}
    if config.pre_norm:
        params["final_norm"] = {"scale": state["final_layer_norm.weight"], "bias": state["final_layer_norm.bias"]}
    return jax.tree.map(jnp.asarray, params)


def our_logits(params: dict, tokens_BT, segment_ids_BT, positions_BT, config: OPTConfig) -> np.ndarray:
    hidden_BTD = decoder.forward(params, tokens_BT, segment_ids_BT, positions_BT, config)
    return np.asarray(decoder.project_vocabulary(hidden_BTD, params["token_embedding"]))


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


def test_remat_changes_no_gradient():
    config = VARIANTS["pre_norm"]
    params = decoder.init_params(jax.random.key(0), config)
    tokens_BT = jnp.asarray(np.random.default_rng(3).integers(4, 160, (2, 32)), jnp.int32)
    ones_BT, positions_BT = jnp.ones_like(tokens_BT), jnp.arange(32)[None].repeat(2, 0)

    def loss(params, remat):
        hidden = decoder.forward(
            params, tokens_BT, ones_BT, positions_BT, config, remat=remat, dropout_key=jax.random.key(1)
        )
        return jnp.square(decoder.project_vocabulary(hidden, params["token_embedding"])).mean()

    want = jax.grad(loss)(params, "none")
    for remat in ("dots", "full"):
        have = jax.grad(loss)(params, remat)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8, rtol=1e-5), have, want)


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

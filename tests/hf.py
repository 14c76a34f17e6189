"""transformers' OPT as the oracle: models of every architectural variant, and their weights in our tree by hand."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from safetensors.torch import load_file

from optiml_jax.model import decoder
from optiml_jax.model.config import OPTConfig

SMALL = {"vocab_size": 160, "layers": 3, "model_dim": 64, "heads": 4, "ffn_dim": 96, "max_positions": 64}
VARIANTS = {
    "pre_norm": OPTConfig(**SMALL),
    "post_norm_projected": OPTConfig(**SMALL, pre_norm=False, embedding_dim=32),
    "head_size_80": OPTConfig(**SMALL | {"model_dim": 160, "heads": 2}),
    "galactica": OPTConfig(**SMALL, activation="gelu", biases=False),
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
            enable_bias=config.biases,
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
        kernel_NX = {"kernel": stack(f"{name}.weight", kernel)}
        return kernel_NX | ({"bias": stack(f"{name}.bias", bias)} if config.biases else {})

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


TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def write(directory: Path, config: OPTConfig, dtype="float32", form="safetensors", sharded=False) -> dict:
    """Saves as transformers does (or, for `.bin`, as the torch that wrote the released files); returns the state."""
    model = torch_model(config).to(TORCH[dtype])
    limit = 60_000 if sharded else 10**9
    model.save_pretrained(directory, max_shard_size=limit)
    state = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    if form == "bin":
        for file in directory.glob("model*safetensors*"):
            if file.suffix == ".json":
                text = file.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
                (directory / "pytorch_model.bin.index.json").write_text(text)
            else:
                held = {name: state[name] for name in load_file(file)}
                torch.save(held, directory / ("pytorch_" + file.stem + ".bin"))
            file.unlink()
    return state


def equal(have: dict, want: dict) -> None:
    """The same tree to the bit."""
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), have, want)

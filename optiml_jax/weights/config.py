"""Conversion between Hugging Face's `config.json` of OPT and `OPTConfig`."""

import dataclasses
from pathlib import Path

from optiml_jax.common import typed_json
from optiml_jax.common.errors import UserError
from optiml_jax.model.config import NOT_IN_WEIGHTS, OPTConfig
from optiml_jax.tokenizer import OPT_EOS_ID, OPT_PAD_ID

MARKER = "optiml_jax_version"  # in config.json: marks a directory that an export wrote and may replace

# our field -> (Hugging Face's name, transformers' default)
FIELDS = {
    "vocab_size": ("vocab_size", 50_272),
    "layers": ("num_hidden_layers", 12),
    "model_dim": ("hidden_size", 768),
    "heads": ("num_attention_heads", 12),
    "ffn_dim": ("ffn_dim", 3_072),
    "max_positions": ("max_position_embeddings", 2_048),
    "embedding_dim": ("word_embed_proj_dim", None),
    "pre_norm": ("do_layer_norm_before", True),
    "activation": ("activation_function", "relu"),
    "biases": ("enable_bias", True),
    "dropout": ("dropout", 0.1),
}
# Options of transformers without a counterpart here: name -> (the only accepted value, meaning of any other value).
FIXED = {
    "layer_norm_elementwise_affine": (True, "layer norms without scale and bias"),
    "tie_word_embeddings": (True, "an output projection that is not the token embedding"),
}


def parse_config(raw: dict, origin: str) -> OPTConfig:
    """Parses the contents of a `config.json`; `origin` names the file in errors."""
    if not isinstance(raw, dict) or raw.get("model_type") != "opt":
        kind = raw.get("model_type") if isinstance(raw, dict) else type(raw).__name__
        raise UserError(f"{origin}: architecture {kind!r} is unknown; only 'opt' (model_type) can be loaded")
    architectures = raw.get("architectures") or []
    if not isinstance(architectures, list):
        raise UserError(f"{origin}: architectures is {architectures!r}; expected a list such as ['OPTForCausalLM']")
    for architecture in architectures:
        if architecture not in ("OPTForCausalLM", "OPTModel"):
            raise UserError(f"{origin}: architecture {architecture!r} is unknown; only OPTForCausalLM can be loaded")
    for name, (value, meaning) in FIXED.items():
        if raw.get(name, value) != value:
            raise UserError(f"{origin}: {name} = {raw[name]} means {meaning}, which is not supported")

    fields = {ours: raw.get(theirs, default) for ours, (theirs, default) in FIELDS.items()}
    for ours, value in fields.items():
        theirs, default = FIELDS[ours]
        kinds = {bool: bool, str: str, float: (int, float)}.get(type(default), int)
        absent = ours == "embedding_dim" and value is None
        if not absent and (not isinstance(value, kinds) or (kinds is int and (isinstance(value, bool) or value < 1))):
            raise UserError(f"{origin}: {theirs} is {value!r}; expected something like {default or 512!r}")
    if fields["pre_norm"] and raw.get("_remove_final_layer_norm", False):
        raise UserError(
            f"{origin}: _remove_final_layer_norm means pre-norm without the final norm (fine-tuned before transformers "
            "4.20.1), which is not supported"
        )
    if fields["embedding_dim"] == fields["model_dim"]:
        fields["embedding_dim"] = None
    try:
        return OPTConfig(**fields)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error


def check_config(actual: OPTConfig, expected: OPTConfig, origin: str) -> None:
    """Refuses weights of another architecture; heads, activation and norm placement do not show in any shape.

    Args:
      actual, expected: of the weights and of the model. What weights do not have may differ, such as dropout.
      origin: names the weights in the message.

    Raises:
    Raises:
      UserError: names the first difference and both values.
    """
    for field in dataclasses.fields(OPTConfig):
        theirs, ours = getattr(actual, field.name), getattr(expected, field.name)
        if field.name not in NOT_IN_WEIGHTS and theirs != ours:
            raise UserError(
                f"{origin}: has {field.name} = {theirs}, OPTConfig.{field.name} is {ours}; "
                "include the gin file of its size (gin/models) or set it"
            )


def hf_config(
    config: OPTConfig, dtype: str, bos: int = OPT_EOS_ID, eos: int = OPT_EOS_ID, pad: int = OPT_PAD_ID
) -> dict:
    """Returns the contents of `config.json` for `transformers.OPTForCausalLM`.

    Args:
      dtype: of the saved tensors: "float32", "float16" or "bfloat16".
      bos: id of the first token of a text: OPT starts with `</s>`.
    """
    from optiml_jax import __version__

    fields = {theirs: getattr(config, ours) for ours, (theirs, _) in FIELDS.items()}
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        **fields,
        "word_embed_proj_dim": config.embedding_width,
        "_remove_final_layer_norm": False,
        "layer_norm_elementwise_affine": True,
        "tie_word_embeddings": True,
        "attention_dropout": 0.0,
        "layerdrop": 0.0,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "torch_dtype": dtype,
        MARKER: __version__,
    }


def was_exported(directory: Path) -> bool:
    """Whether `directory` was written by an export."""
    try:
        return MARKER in typed_json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False

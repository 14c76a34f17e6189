"""`config.json` of Hugging Face's OPT, read into ours and written from it."""

import dataclasses
import json
from pathlib import Path

from optiml_jax.common.errors import UserError
from optiml_jax.model.config import OPTConfig

MARKER = "optiml_jax_version"  # in config.json: a directory that an export wrote, and may replace

# ours -> (theirs, the value transformers takes where the file says nothing)
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
# What transformers can do and we do not: their name -> (the only value we take, what another one would mean).
FIXED = {
    "layer_norm_elementwise_affine": (True, "layer norms without scale and bias"),
    "tie_word_embeddings": (True, "an output projection that is not the token embedding"),
}


def parse_config(raw: dict, origin: str) -> OPTConfig:
    """`OPTConfig` from the contents of a `config.json`; `origin` names it in errors."""
    if not isinstance(raw, dict) or raw.get("model_type") != "opt":
        kind = raw.get("model_type") if isinstance(raw, dict) else type(raw).__name__
        raise UserError(f"{origin}: architecture {kind!r} is unknown; only 'opt' (model_type) can be loaded")
    for architecture in raw.get("architectures") or []:
        if architecture not in ("OPTForCausalLM", "OPTModel"):
            raise UserError(f"{origin}: architecture {architecture!r} is unknown; only OPTForCausalLM can be loaded")
    for name, (value, meaning) in FIXED.items():
        if raw.get(name, value) != value:
            raise UserError(f"{origin}: {name} = {raw[name]} means {meaning}, which this model does not have")

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
            "4.20.1), which this model does not have"
        )
    if fields["embedding_dim"] == fields["model_dim"]:
        fields["embedding_dim"] = None
    try:
        return OPTConfig(**fields)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error


def check_config(found: OPTConfig, wanted: OPTConfig, origin: str) -> None:
    """Refuses weights of another architecture: heads, activation and places of norms do not show in any shape.

    Args:
      found, wanted: of the weights, of the model. Dropout and the scale of random weights may differ.
      origin: names the weights in the message.

    Raises:
      UserError: names the first difference and both values.
    """
    for field in dataclasses.fields(OPTConfig):
        theirs, ours = getattr(found, field.name), getattr(wanted, field.name)
        if field.name not in ("dropout", "init_scale") and theirs != ours:
            raise UserError(
                f"{origin}: has {field.name} = {theirs}, OPTConfig.{field.name} is {ours}; "
                "include the gin file of its size (gin/models) or set it"
            )


def hf_config(config: OPTConfig, dtype: str, bos: int = 2, eos: int = 2, pad: int = 1) -> dict:
    """Contents of `config.json` for `transformers.OPTForCausalLM`.

    Args:
      dtype: of the tensors written: "float32", "float16" or "bfloat16".
      bos: the id that starts a text: OPT starts with `</s>`.
    """
    from optiml_jax import __version__

    written = {theirs: getattr(config, ours) for ours, (theirs, _) in FIELDS.items()}
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        **written,
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
    """Whether an export wrote `directory`."""
    try:
        return MARKER in json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False

"""Foreign weight formats: Hugging Face (safetensors and `.bin`, directories and hub names) and metaseq, on any mesh."""

from optiml_jax.weights import peft
from optiml_jax.weights.config import check_config, hf_config, was_exported
from optiml_jax.weights.load import load, load_hf, read_config, stored_dtype, tokenizer_source
from optiml_jax.weights.metaseq import is_metaseq, load_metaseq
from optiml_jax.weights.save import save_hf
from optiml_jax.weights.source import is_hf, is_hub_name, resolve

__all__ = [
    "check_config",
    "hf_config",
    "is_hf",
    "is_hub_name",
    "is_metaseq",
    "load",
    "load_hf",
    "load_metaseq",
    "peft",
    "read_config",
    "resolve",
    "save_hf",
    "stored_dtype",
    "tokenizer_source",
    "was_exported",
]

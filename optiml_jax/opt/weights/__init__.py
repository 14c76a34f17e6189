"""Weights in and out: Hugging Face directories and hub names, safetensors and `.bin`, on any mesh."""

from optiml_jax.opt.weights.config import hf_config, read_config
from optiml_jax.opt.weights.load import load_hf
from optiml_jax.opt.weights.save import save_hf
from optiml_jax.opt.weights.source import is_hf, resolve

__all__ = ["hf_config", "is_hf", "load_hf", "read_config", "resolve", "save_hf"]

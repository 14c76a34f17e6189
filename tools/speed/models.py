"""Shapes by name (Zhang et al. 2022, table 1)."""

from optiml_jax.model.config import OPTConfig


def _shape(layers: int, model_dim: int, heads: int, **others) -> OPTConfig:
    return OPTConfig(layers=layers, model_dim=model_dim, heads=heads, ffn_dim=4 * model_dim, **others)


MODELS = {
    "tiny": _shape(2, 64, 4, vocab_size=512, init_scale=0.1),  # to try the tool; its weights are large enough to matter
    "125m": _shape(12, 768, 12),
    "350m": _shape(24, 1024, 16, embedding_dim=512, pre_norm=False),
    "1.3b": _shape(24, 2048, 32),
    "2.7b": _shape(32, 2560, 32),
    "6.7b": _shape(32, 4096, 32),
}

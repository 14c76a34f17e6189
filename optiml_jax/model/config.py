"""Architecture of an OPT model (Zhang et al. 2022, table 1; Hugging Face `OPTConfig`)."""

import dataclasses

import jax.numpy as jnp

from optiml_jax.common.errors import UserError
from optiml_jax.common.settings import check_fields
from optiml_jax.model.adapter import Lora

PRECISIONS = {"fp32": jnp.float32, "bf16": jnp.bfloat16, "fp16": jnp.float16}  # compute dtypes
NOT_IN_WEIGHTS = ("dropout", "init_scale", "adapter", "kernels")  # the fields that weights do not determine
POSITION_OFFSET = 2  # metaseq starts learned positions at padding_idx + 1; the table's first two rows are unused


@dataclasses.dataclass(frozen=True)
class OPTConfig:
    """Shape of an OPT model; the defaults are OPT-125M.

    Attributes:
      vocab_size: V, rows of the embedding (50,272: OPT's 50,265 ids padded to a multiple of 32).
      layers: N, blocks.
      model_dim: D, width of the residual stream.
      heads: H, attention heads per block.
      ffn_dim: F, width of the feed-forward.
      max_positions: learned positions, the longest row.
      embedding_dim: width of the embedding where it differs from `model_dim` (350M: 512); None means `model_dim`.
      pre_norm: norm before attention and MLP, and a final norm. Only 350M normalizes after them, without a final norm.
      activation: "relu" (OPT) or "gelu" (Galactica).
      biases: whether projections have biases (Galactica has none).
      dropout: rate on the embeddings (OPT-IML section 3.3; OPT's pre-training had none there) and on both outputs of a
        block, in training only. Attention weights have no dropout: metaseq pre-trained with 0.1 (`opt_baselines.py`),
        the released configurations say 0.0, and OPT-IML does not mention it.
      init_scale: standard deviation of random weights (Zhang et al. 2022, section 2.2).
      adapter: low-rank adapters of the blocks' matrices; None for none.
      kernels: how the blocks' matrices are stored: "float", or "int8" with a scale per output (`int8.py`), which
        cannot be trained.
    """

    vocab_size: int = 50_272
    layers: int = 12
    model_dim: int = 768
    heads: int = 12
    ffn_dim: int = 3_072
    max_positions: int = 2_048
    embedding_dim: int | None = None
    pre_norm: bool = True
    activation: str = "relu"
    biases: bool = True
    dropout: float = 0.1
    init_scale: float = 0.006
    adapter: Lora | None = None
    kernels: str = "float"

    def __post_init__(self) -> None:
        check_fields(self, dropout=(0.0, 1.0 - 1e-9))
        if self.model_dim % self.heads:
            raise UserError(f"OPTConfig: model_dim {self.model_dim} is not a multiple of heads {self.heads}")
        if self.activation not in ("relu", "gelu"):
            raise UserError(f"OPTConfig.activation: {self.activation!r} is unknown; use 'relu' or 'gelu'")
        if self.kernels not in ("float", "int8"):
            raise UserError(f"OPTConfig.kernels: {self.kernels!r} is unknown; use 'float' or 'int8'")

    @property
    def base(self) -> "OPTConfig":
        """The architecture of the weights that it starts from: without adapters, in floating point."""
        return dataclasses.replace(self, adapter=None, kernels="float")

    @property
    def head_dim(self) -> int:
        return self.model_dim // self.heads

    @property
    def embedding_width(self) -> int:
        return self.embedding_dim or self.model_dim

    @property
    def projects_embedding(self) -> bool:
        return self.embedding_width != self.model_dim

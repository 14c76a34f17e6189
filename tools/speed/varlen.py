"""torch's attention over documents that follow each other without padding: the fastest exact one that torch has.

On GPUs it is FlashAttention (`torch.nn.attention.varlen`, torch 2.10 or newer); on CPUs, where torch has none, one call
of SDPA per document.
"""

import inspect
from typing import Any

import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None

NAME = "optiml_jax_varlen"  # as an attention implementation of transformers
IS_AVAILABLE = varlen_attn is not None or not torch.cuda.is_available()
# The arguments of `varlen_attn` depend on the version of torch.
PARAMETERS = inspect.signature(varlen_attn).parameters if varlen_attn else {}
OPTIONS: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in PARAMETERS else {"is_causal": True}
if "scale" in PARAMETERS:
    OPTIONS["scale"] = 1.0
WHAT = "varlen attention" if torch.cuda.is_available() else "SDPA per document"


def attend(q_NHK: torch.Tensor, k_NHK: torch.Tensor, v_NHK: torch.Tensor, starts: torch.Tensor, longest: int):
    """Causal attention inside each document, of queries that are scaled already.

    Args:
      starts: int32, of every document, and the number of tokens N.
      longest: tokens of the longest document.
    """
    if not q_NHK.is_cuda:
        parts = zip(*(torch.split(x.transpose(0, 1), starts.diff().tolist(), 1) for x in (q_NHK, k_NHK, v_NHK)))
        out = [scaled_dot_product_attention(*part, is_causal=True, scale=1.0) for part in parts]
        return torch.cat(out, 1).transpose(0, 1)
    if "scale" not in OPTIONS:
        q_NHK = q_NHK * q_NHK.shape[-1] ** 0.5
    return varlen_attn(q_NHK, k_NHK, v_NHK, starts, starts, longest, longest, **OPTIONS)


def _attention(module, query, key, value, attention_mask, *, cu_seq_lens_q, max_length_q, **_):
    """`attend` for transformers: one row of all documents, [1, H, N, K]."""
    q_NHK, k_NHK, v_NHK = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend(q_NHK, k_NHK, v_NHK, cu_seq_lens_q, max_length_q)[None], None


transformers.AttentionInterface.register(NAME, _attention)

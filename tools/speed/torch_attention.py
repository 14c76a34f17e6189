"""The peer of `attention`: torch's implementations for packed rows."""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from torch.nn.attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from tools.speed import machine, varlen

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def ways(
    arrays: tuple[np.ndarray, ...], segment_ids_BT: np.ndarray, flags: argparse.Namespace
) -> dict[str, Callable[[], torch.Tensor]]:
    """Returns functions that run forward and backward `flags.steps` times and return the output [B, T, H, K], by name.

    flex_attention, with its block mask of documents, needs a GPU and torch.compile.
    """
    torch.set_num_threads(machine.cores())
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    bthk = [torch.from_numpy(x).to(device, DTYPES[flags.precision]) for x in arrays]
    bhtk = [x.transpose(1, 2).contiguous() for x in bthk]  # torch's own order
    ids = torch.from_numpy(segment_ids_BT).to(device)
    mask = (ids[:, None, :, None] == ids[:, None, None, :]).tril()

    def repeat(
        attend: Callable, arrays: list[torch.Tensor] = bhtk, restore: Callable = lambda out: out.transpose(1, 2)
    ) -> Callable[[], torch.Tensor]:
        *qkv, d_out = arrays
        inputs = [x.detach().clone().requires_grad_() for x in qkv]

        def run() -> torch.Tensor:
            for _ in range(flags.steps):
                for x in inputs:
                    x.grad = None
                out = attend(*inputs)
                out.backward(d_out)
            if cuda:
                torch.cuda.synchronize()
            return restore(out)

        return run

    ways_ = {
        "torch SDPA, 4-D mask": repeat(
            lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        ),
        "torch SDPA, causal only": repeat(
            lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
        ),
    }
    if varlen.IS_AVAILABLE:
        real = ids > 0
        begins = torch.nn.functional.pad(ids[:, 1:] != ids[:, :-1], (1, 0), value=True)[real]
        starts = torch.nn.functional.pad(torch.nonzero(begins)[:, 0], (0, 1), value=len(begins)).int()
        longest = int(starts.diff().max())
        ways_[f"torch {varlen.WHAT}"] = repeat(
            lambda q, k, v: varlen.attend(q, k, v, starts, longest),
            [x[real] for x in bthk],
            lambda out: torch.zeros_like(bthk[0]).masked_scatter(real[..., None, None], out.detach()),
        )
    if cuda and not flags.no_torch_compile:
        length = ids.shape[1]

        def visible(b, h, t, s):
            return (t >= s) & (ids[b, t] == ids[b, s])

        blocks = flex_attention.create_block_mask(visible, len(ids), None, length, length, device=device)
        compiled = torch.compile(flex_attention.flex_attention)
        ways_["torch flex_attention, documents"] = repeat(
            lambda q, k, v: compiled(q, k, v, block_mask=blocks, scale=1.0)
        )
    return ways_


def numpy(x: torch.Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy()

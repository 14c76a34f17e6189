"""The peers of `evaluate`: lm-evaluation-harness's Hugging Face backend and `generate`, and vLLM."""

import argparse
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp

from optiml_jax.common.errors import UserError
from optiml_jax.inference.model import Model
from optiml_jax.model.config import PRECISIONS
from tools.speed.prompts import Pairs
from tools.speed.rows import EOS

VLLM_MEMORY = 0.3  # of the GPU; JAX needs the rest (XLA_PYTHON_CLIENT_MEM_FRACTION=0.6)


def hugging_face(model: Model, directory: Path, flags: argparse.Namespace) -> tuple[Callable, Callable]:
    """Computes the harness's log-likelihoods of pairs, and transformers' greedy ids of prompts."""
    try:
        import torch
        import transformers
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise UserError(f"the peer is not installed ({error}); pip install 'lm_eval[hf]', or use --no_peer") from None
    transformers.utils.logging.disable_progress_bar()
    model.save(directory)
    torch_model = transformers.OPTForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, jnp.dtype(PRECISIONS[flags.precision]).name)
    ).eval()
    torch_model.to("cuda" if torch.cuda.is_available() else "cpu")
    vocabulary = transformers.AutoTokenizer.from_pretrained(directory)
    harness = HFLM(
        pretrained=torch_model, tokenizer=vocabulary, batch_size=flags.batch, max_length=model.config.max_positions
    )
    pad, batch = model.tokenizer.pad_id, flags.batch
    cache = {"cache_implementation": "static"} if flags.static_cache else {}

    def rank(pairs: Pairs) -> list[float]:
        requests = [((str(i), ""), before, continuation) for i, (before, continuation) in enumerate(pairs)]
        return [score for score, _ in harness._loglikelihood_tokens(requests, disable_tqdm=True)]

    @torch.no_grad()
    def generate(prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        for first in range(0, len(prompts), batch):
            batch_indices = order[first : first + batch]
            longest = max(len(prompts[i]) for i in batch_indices)
            rows = [[pad] * (longest - len(prompts[i])) + prompts[i] for i in batch_indices]
            mask = [[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in batch_indices]
            ends = torch.tensor([longest + lengths[i] for i in batch_indices], device=torch_model.device)
            generated = torch_model.generate(
                torch.tensor(rows, device=ends.device),
                attention_mask=torch.tensor(mask, device=ends.device),
                max_new_tokens=max(lengths[i] for i in batch_indices),
                stopping_criteria=[lambda ids, _, ends=ends: ids.shape[1] >= ends],
                do_sample=False,
                pad_token_id=pad,
                eos_token_id=EOS,
                **cache,
            )
            for i, ids in zip(batch_indices, generated[:, longest:].tolist()):
                ids = ids[: lengths[i]]
                answers[i] = ids[: ids.index(EOS)] if EOS in ids else ids
        return answers

    return rank, generate


def vllm_engine(model: Model, directory: Path, flags: argparse.Namespace) -> tuple[None, Callable]:
    """Computes vLLM's greedy ids of prompts, with its prefix cache; it ranks nothing here."""
    try:
        import vllm
    except ImportError as error:
        raise UserError(f"--peer=vllm is not installed ({error}); pip install vllm, or use --peer=hf") from None
    model.save(directory)
    engine = vllm.LLM(
        model=str(directory),
        dtype=jnp.dtype(PRECISIONS[flags.precision]).name,
        max_model_len=model.config.max_positions,
        gpu_memory_utilization=VLLM_MEMORY,
        enable_prefix_caching=True,
    )

    def generate(prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        limits = [vllm.SamplingParams(temperature=0.0, max_tokens=length) for length in lengths]
        outputs = engine.generate([{"prompt_token_ids": ids} for ids in prompts], limits, use_tqdm=False)
        answers = [list(output.outputs[0].token_ids) for output in outputs]
        return [ids[: ids.index(EOS)] if EOS in ids else ids for ids in answers]

    return None, generate

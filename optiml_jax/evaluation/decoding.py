"""Greedy decoding (paper 4.1) with a cache of keys and values, to `</s>` or a number of tokens."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optiml_jax.errors import UserError
from optiml_jax.opt import decoder, sharding
from optiml_jax.opt.attention import dense_attention, document_mask
from optiml_jax.opt.network import Network

MIN_PROMPT = 32  # prompt lengths are rounded up to this times a power of two: few programs to compile


class Answer(NamedTuple):
    """Generated ids without `</s>`; `truncated` by the token limit; `prompt_cut`: the prompt lost its start."""

    ids: list[int]
    truncated: bool
    prompt_cut: bool


def greedy(model: Network, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_rows: int = 16) -> list[Answer]:
    """The most likely next token, again and again, for every prompt.

    Args:
      prompts: ids; cut on the left where prompt and answer exceed the model's positions.
      max_new_tokens: the limit, 256 in the paper.
      batch_rows: prompts answered at once; those of like length share a batch.

    Raises:
      UserError: an empty prompt, or a limit that leaves no room for one.
    """
    room = model.config.max_positions - max_new_tokens
    if max_new_tokens < 1 or room < 1:
        raise UserError(
            f"MAX_NEW_TOKENS {max_new_tokens} must be from 1 to {model.config.max_positions - 1}, the model's positions"
        )
    if not all(len(prompt) for prompt in prompts):
        raise UserError("an empty prompt has no continuation; give it a text or a leading </s>")
    answers: list[Answer | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for first in range(0, len(order), batch_rows):
        members = order[first : first + batch_rows]
        cut = [list(prompts[i])[-room:] for i in members]
        length = min(room, _bucket(max(map(len, cut))))
        tokens_BP = np.full((batch_rows, length), model.tokenizer.pad_id, np.int32)
        segment_ids_BP = np.zeros((batch_rows, length), np.int32)
        for row, ids in enumerate(cut):  # padded on the left: all rows continue at the same place
            tokens_BP[row, length - len(ids) :] = ids
            segment_ids_BP[row, length - len(ids) :] = 1
        with jax.set_mesh(model.mesh):
            placed = model.place(tokens_BP), model.place(segment_ids_BP)
            tokens_BG = _generate(
                model.params, *placed, model.config, model.dtype, max_new_tokens, model.tokenizer.eos_id
            )
        for i, ids, kept in zip(members, np.asarray(tokens_BG).tolist(), cut):
            end = ids.index(model.tokenizer.eos_id) if model.tokenizer.eos_id in ids else None
            answers[i] = Answer(ids[:end], end is None, len(kept) < len(prompts[i]))
    return answers


def _bucket(length: int) -> int:
    return MIN_PROMPT << max(0, (length - 1) // MIN_PROMPT).bit_length()


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _generate(params, tokens_BP, segment_ids_BP, config, dtype, new, eos_id):
    """New tokens [B, G]; what follows a row's first `</s>` means nothing. P prompt, C = P + G cache positions."""
    rows, length = tokens_BP.shape
    embedding_VD = decoder.gathered_embedding(params, dtype)
    positions_BP = jnp.maximum(jnp.cumsum(segment_ids_BP, 1) - 1, 0)
    mask_B1PP = document_mask(segment_ids_BP)

    def attend_prompt(_):
        return lambda q, k, v: (dense_attention(q, k, v, mask_B1PP), (k, v))

    x_BPD = decoder.embed(params, tokens_BP, positions_BP, embedding_VD, config)
    x_BPD, kept = decoder.scan_blocks(params, x_BPD, None, attend_prompt, config)
    token_B = _next_token(params, x_BPD[:, -1:], embedding_VD, config)
    # cache: keys and values of every layer, [N, B, C, H, K]
    cache = jax.tree.map(lambda x: _constrain_cache(jnp.pad(x, ((0, 0), (0, 0), (0, new), (0, 0), (0, 0)))), kept)
    real_BC = jnp.pad(segment_ids_BP == 1, ((0, 0), (0, new)), constant_values=True)
    first_free_B = segment_ids_BP.sum(1)

    def decode(carry):
        made, token_B, tokens_BG, cache, done_B = carry
        tokens_BG = tokens_BG.at[:, made].set(token_B)
        done_B |= token_B == eos_id
        place = length + made
        mask_B11C = (real_BC & (jnp.arange(length + new) <= place))[:, None, None]

        def attend_cache(layer_cache):
            def attend(q_B1HK, k_B1HK, v_B1HK):
                keys_BCHK, values_BCHK = (
                    jax.lax.dynamic_update_slice_in_dim(old_BCHK, fresh_B1HK, place, 1)
                    for old_BCHK, fresh_B1HK in zip(layer_cache, (k_B1HK, v_B1HK))
                )
                return dense_attention(q_B1HK, keys_BCHK, values_BCHK, mask_B11C), (k_B1HK, v_B1HK)

            return attend

        positions_B1 = (first_free_B + made)[:, None]
        x_B1D = decoder.embed(params, token_B[:, None], positions_B1, embedding_VD, config)
        x_B1D, fresh = decoder.scan_blocks(params, x_B1D, cache, attend_cache, config)
        # Blocks return the new position only; the whole cache is written here, in place, not copied through the scan.
        cache = jax.tree.map(lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x, place, 2), cache, fresh)
        return made + 1, _next_token(params, x_B1D, embedding_VD, config), tokens_BG, cache, done_B

    def unfinished(carry):
        made, *_, done_B = carry
        return (made < new) & ~done_B.all()

    # Rows that are padding alone would never end by themselves.
    done_B = first_free_B == 0
    tokens_BG = jnp.full((rows, new), eos_id, jnp.int32)
    return jax.lax.while_loop(unfinished, decode, (0, token_B, tokens_BG, cache, done_B))[2]


def _next_token(params, x_B1D, embedding_VD, config):
    hidden_BE = decoder.finish(params, x_B1D, config)[:, 0]
    return decoder.project_vocabulary(hidden_BE, embedding_VD).argmax(-1).astype(jnp.int32)


def _constrain_cache(x_NBCHK):
    return sharding.constrain(x_NBCHK, "NBCHK")

"""Greedy decoding (paper 4.1), to `</s>` or a number of tokens."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optiml_jax.errors import UserError
from optiml_jax.inference.cache import extend, prefill
from optiml_jax.inference.network import Network
from optiml_jax.inference.ranking import NAN_HINT
from optiml_jax.model import decoder

POSITIONS = 16_384  # of prompts and answers computed together, at most (a single row may be longer)
MIN_PROMPT = 32  # prompt lengths are rounded up, from this on: few programs to compile


class Answer(NamedTuple):
    """Generated ids without `</s>`; `truncated` by the token limit; `prompt_cut`: the prompt lost its start."""

    ids: list[int]
    truncated: bool
    prompt_cut: bool


def greedy(
    model: Network,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_rows: int = 16,
    names: Sequence[str] | None = None,
) -> list[Answer]:
    """The most likely next token, again and again, for every prompt.

    Args:
      prompts: ids; cut on the left where prompt and answer exceed the model's positions, but for a leading `</s>`.
      max_new_tokens: the limit, 256 in the paper.
      batch_rows: prompts answered at once, fewer where they are long; those of like length share a batch.
      names: of the prompts, for messages.

    Raises:
      UserError: an empty prompt, a limit that leaves no room for one, or logits that are NaN or infinite.
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
    while order:
        members = _batch(order, [len(prompts[i]) for i in order], room, max_new_tokens, batch_rows)
        del order[: len(members)]
        cut = [model.cut(prompts[i], room) for i in members]
        length = min(room, _bucket(max(map(len, cut))))
        rows = min(batch_rows, 1 << (len(members) - 1).bit_length())  # few programs to compile, and no empty work
        tokens_BP = np.full((rows, length), model.tokenizer.pad_id, np.int32)
        segment_ids_BP = np.zeros((rows, length), np.int32)
        for row, ids in enumerate(cut):  # padded on the left: all rows continue at the same place
            tokens_BP[row, length - len(ids) :] = ids
            segment_ids_BP[row, length - len(ids) :] = 1
        with jax.set_mesh(model.mesh):
            placed = model.place(tokens_BP), model.place(segment_ids_BP)
            made = _generate(model.params, *placed, model.config, model.dtype, max_new_tokens, model.tokenizer.eos_id)
            tokens_BG, finite_B = map(model.fetch, made)
        for i, ids, finite, kept in zip(members, tokens_BG.tolist(), finite_B.tolist(), cut):
            if not finite:
                name = names[i] if names else f"{i} of {len(prompts)}"
                raise UserError(f"prompt {name}: the logits of its answer are not finite; {NAN_HINT}")
            end = ids.index(model.tokenizer.eos_id) if model.tokenizer.eos_id in ids else None
            answers[i] = Answer(ids[:end], end is None, len(kept) < len(prompts[i]))
    return answers


def _batch(order: list[int], lengths: list[int], room: int, new: int, batch_rows: int) -> list[int]:
    """The first of `order`, prompts sorted by length, that are answered together."""
    count = 1
    while count < min(batch_rows, len(order)):
        if (count + 1) * (min(room, _bucket(lengths[count])) + new) > POSITIONS:
            break
        count += 1
    return order[:count]


def _bucket(length: int) -> int:
    """`length` rounded up to 32, 48, 64, 96, 128, ..."""
    power = MIN_PROMPT << max(0, (length - 1) // MIN_PROMPT).bit_length()
    return power * 3 // 4 if power > MIN_PROMPT and length <= power * 3 // 4 else power


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _generate(params, tokens_BP, segment_ids_BP, config, dtype, new, eos_id):
    """New tokens [B, G], and whether the logits behind them were finite [B].

    What follows a row's first `</s>` means nothing.
    """
    embedding_VD = decoder.gathered_embedding(params, dtype)
    logits_BV, cache = prefill(params, tokens_BP, segment_ids_BP, new, embedding_VD, config)

    def decode(carry):
        made, token_B, sound_B, tokens_BG, finite_B, cache, done_B = carry
        tokens_BG = tokens_BG.at[:, made].set(token_B)
        finite_B &= sound_B | done_B
        done_B |= (token_B == eos_id) | ~finite_B
        logits_BV, cache = extend(params, token_B, cache, embedding_VD, config)
        return made + 1, *_best(logits_BV), tokens_BG, finite_B, cache, done_B

    def unfinished(carry):
        made, *_, done_B = carry
        return (made < new) & ~done_B.all()

    rows = len(tokens_BP)
    # Rows that are padding alone would never end by themselves.
    done_B = cache.next_B == 0
    tokens_BG = jnp.full((rows, new), eos_id, jnp.int32)
    finite_B = jnp.ones(rows, bool)
    carry = jax.lax.while_loop(unfinished, decode, (0, *_best(logits_BV), tokens_BG, finite_B, cache, done_B))
    return carry[3], carry[4]


def _best(logits_BV):
    """The most likely token [B], and whether all logits are finite [B]: a NaN would win every comparison."""
    return logits_BV.argmax(-1).astype(jnp.int32), jnp.isfinite(logits_BV).all(-1)

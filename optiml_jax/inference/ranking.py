"""Rank classification (paper 4.1): the log-probability of each candidate after its prompt.

Prompt and candidate together are one document; documents are packed into rows as in training, where packing changes
no score, so that every program has one shape and little of it is padding.
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from optiml_jax.data.packing import pack
from optiml_jax.errors import UserError
from optiml_jax.inference.network import Network
from optiml_jax.model import decoder, head

Ids = Sequence[int]
MIN_ROW = 256
NAN_HINT = "are the weights damaged, or too large for this precision?"


def continuation_scores(
    model: Network, pairs: Sequence[tuple[Ids, Ids]], batch_rows: int = 8, names: Sequence[str] | None = None
) -> list[float]:
    """Sum of the log-probabilities of the tokens of each continuation.

    Args:
      pairs: (ids before, ids of the continuation). What comes before is cut on the left where both are too long, but
        keeps its leading `</s>`.
      batch_rows: rows computed at once.
      names: of the pairs, for messages.

    Raises:
      UserError: a continuation that is empty, has nothing before it, or alone is longer than the model's positions; a
        score that is NaN or infinite, which nothing can be ranked by.
    """
    documents = [_document(model, before, continuation) for before, continuation in pairs]
    if not documents:
        return []
    lengths = np.array([len(ids) - 1 for ids, _ in documents])
    row_length = max(MIN_ROW, 1 << int(lengths.max() - 1).bit_length())
    row_length = min(row_length, model.config.max_positions)
    rows = pack(lengths, row_length)
    scores = np.empty(len(documents))
    for first in range(0, len(rows), batch_rows):
        here = rows[first : first + batch_rows]
        arrays = _emit(here, documents, batch_rows, row_length, model.tokenizer.pad_id)
        with jax.set_mesh(model.mesh):
            placed = [model.place(x_BT) for x_BT in arrays]
            nats_BT = model.fetch(_nats(model.params, *placed, model.config, model.dtype)).astype(np.float64)
        for row, members in enumerate(here):
            ends = np.cumsum(lengths[members])
            for member, end in zip(members, ends):
                scores[member] = -nats_BT[row, end - documents[member][1] : end].sum()
    for i in np.flatnonzero(~np.isfinite(scores)):
        name = names[i] if names else f"{i} of {len(pairs)}"
        raise UserError(f"prompt {name}: a candidate's score is {scores[i]}, not a number to rank by; {NAN_HINT}")
    return scores.tolist()


def _document(model: Network, before: Ids, continuation: Ids) -> tuple[list[int], int]:
    """Ids of the whole, at most the model's positions of them read, and how many at the end are scored."""
    longest = model.config.max_positions
    if not continuation or not before:
        raise UserError("a candidate without tokens, or with nothing before it, has no score")
    if len(continuation) > longest:
        raise UserError(f"a candidate of {len(continuation)} tokens is longer than the model's {longest} positions")
    return [*model.cut(before, longest + 1 - len(continuation)), *continuation], len(continuation)


def _emit(rows, documents, batch_rows, row_length, pad_id):
    """tokens, targets, segment ids, positions, label mask of a batch; missing rows are padding."""
    tokens_BT, targets_BT = (np.full((batch_rows, row_length), pad_id, np.int32) for _ in range(2))
    segment_ids_BT, positions_BT = (np.zeros((batch_rows, row_length), np.int32) for _ in range(2))
    label_mask_BT = np.zeros((batch_rows, row_length), bool)
    for row, members in enumerate(rows):
        start = 0
        for segment, member in enumerate(members, 1):
            ids, scored = documents[member]
            end = start + len(ids) - 1
            tokens_BT[row, start:end], targets_BT[row, start:end] = ids[:-1], ids[1:]
            segment_ids_BT[row, start:end], positions_BT[row, start:end] = segment, np.arange(end - start)
            label_mask_BT[row, end - scored : end] = True
            start = end
    return tokens_BT, targets_BT, segment_ids_BT, positions_BT, label_mask_BT


@functools.partial(jax.jit, static_argnums=(6, 7))
def _nats(params, tokens_BT, targets_BT, segment_ids_BT, positions_BT, label_mask_BT, config, dtype):
    embedding_VD = decoder.gathered_embedding(params, dtype)
    hidden_BTD = decoder.forward(
        params, tokens_BT, segment_ids_BT, positions_BT, config, embedding_VD=embedding_VD, dtype=dtype
    )
    return head.label_nats(hidden_BTD, embedding_VD, targets_BT, label_mask_BT)

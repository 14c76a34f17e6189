"""Rank classification (paper 4.1): the log-probability of each candidate after its prompt.

A prompt and one candidate form one document. Documents are packed into rows and share common prefixes
(`prefix_sharing.py`); neither changes a score.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from optiml_jax.common.errors import UserError
from optiml_jax.inference.network import Network
from optiml_jax.inference.prefix_sharing import Document, lay_out
from optiml_jax.model import decoder, head

Ids = Sequence[int]
NAN_HINT = "are the weights damaged, or too large for this precision?"


class Continuation(NamedTuple):
    """The log-probability of each token of a continuation, float32, and whether each was the likeliest there."""

    tokens: np.ndarray
    greedy: bool

    @property
    def score(self) -> float:
        """Their sum."""
        return float(self.tokens.sum(dtype=np.float64))


def continuation_scores(
    model: Network, pairs: Sequence[tuple[Ids, Ids]], batch_rows: int = 8, names: Sequence[str] | None = None
) -> list[float]:
    """Sum of the log-probabilities of the tokens of each continuation; arguments and errors as `continuations`."""
    return [found.score for found in continuations(model, pairs, batch_rows, names)]


def continuations(
    model: Network, pairs: Sequence[tuple[Ids, Ids]], batch_rows: int = 8, names: Sequence[str] | None = None
) -> list[Continuation]:
    """What the model makes of each continuation.

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
    found: dict[int, Continuation] = {}
    for batch in lay_out(documents, batch_rows, model.tokenizer.pad_id, model.most_positions):
        with jax.set_mesh(model.mesh):
            placed = map(model.place, batch.arrays)
            on_device = _log_probabilities(model.params, *placed, model.config, model.dtype)
            found_BTM, best_BT = map(model.fetch, on_device)
        for document, (row, tokens, slots) in batch.places.items():
            places = tokens[len(tokens) - len(slots) :]
            scores = found_BTM[row, places, slots]
            found[document] = Continuation(scores, bool((scores == best_BT[row, places]).all()))
    ordered = [found[i] for i in range(len(documents))]
    for i, one in enumerate(ordered):
        if not np.isfinite(one.score):
            name = names[i] if names else f"{i} of {len(pairs)}"
            raise UserError(f"prompt {name}: a candidate's score is {one.score}, not a number to rank by; {NAN_HINT}")
    return ordered


def _document(model: Network, before: Ids, continuation: Ids) -> Document:
    """The last token is not read, and at most the model's positions of what comes before it are."""
    longest = model.config.max_positions
    if not continuation or not before:
        raise UserError("a candidate without tokens, or with nothing before it, has no score")
    if len(continuation) > longest:
        raise UserError(f"a candidate of {len(continuation)} tokens is longer than the model's {longest} positions")
    return Document([*model.cut(before, longest + 1 - len(continuation)), *continuation[:-1]], list(continuation))


@functools.partial(jax.jit, static_argnums=(7, 8))
def _log_probabilities(
    params, tokens_BT, segment_ids_BT, positions_BT, until_BT, targets_BTM, label_mask_BT, config, dtype
):
    embedding_VD = decoder.gathered_embedding(params, dtype)
    hidden_BTD = decoder.forward(
        params,
        tokens_BT,
        segment_ids_BT,
        positions_BT,
        config,
        until_BT=until_BT,
        embedding_VD=embedding_VD,
        dtype=dtype,
    )
    return head.log_probabilities(hidden_BTD, embedding_VD, targets_BTM, label_mask_BT)

"""Rank classification (paper 4.1): the log-probability of each candidate after its prompt.

A prompt and a candidate form one sequence. Sequences are packed into rows and share common prefixes
(`prefix_sharing.py`); neither changes a score.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from optiml_jax.common.errors import UserError
from optiml_jax.inference.network import Network
from optiml_jax.inference.prefix_sharing import ScoredSequence, lay_out
from optiml_jax.model import decoder, head

Ids = Sequence[int]
NAN_HINT = "are the weights damaged, or too large for this precision?"


class Continuation(NamedTuple):
    """Scores of a continuation: `log_probabilities` of its tokens, float32, and whether each was the most likely token
    at its position (`greedy`)."""

    log_probabilities: np.ndarray
    greedy: bool

    @property
    def score(self) -> float:
        """Sum of the log-probabilities."""
        return float(self.log_probabilities.sum(dtype=np.float64))


def continuations(
    model: Network, pairs: Sequence[tuple[Ids, Ids]], batch_rows: int | None = None, names: Sequence[str] | None = None
) -> list[Continuation]:
    """Scores continuations.

    Args:
      pairs: (ids before, ids of the continuation). Where both are too long, the ids before are cut on the left, after a
        leading `</s>`.
      batch_rows: rows computed at once; None: as many as memory allows.
      names: of the pairs, for messages.

    Raises:
      UserError: a continuation is empty, has nothing before it, or alone exceeds the model's positions; or a score is
        NaN or infinite and cannot be ranked.
    """
    sequences = [_sequence(model, before, continuation) for before, continuation in pairs]
    scored: dict[int, Continuation] = {}
    rows = batch_rows or model.capacity.rows
    for batch in lay_out(sequences, rows, model.tokenizer.pad_id, model.capacity.positions):
        with jax.set_mesh(model.mesh):
            placed = map(model.place, batch.arrays)
            on_device = batch_log_probabilities(model.params, *placed, model.config, model.dtype)
            log_probability_BTM, best_BT = map(model.fetch, on_device)
        for i, (row, positions, slots) in batch.placements.items():
            positions = positions[len(positions) - len(slots) :]
            log_probabilities = log_probability_BTM[row, positions, slots]
            greedy = bool((log_probabilities == best_BT[row, positions]).all())
            scored[i] = Continuation(log_probabilities, greedy)
    continuations = [scored[i] for i in range(len(sequences))]
    for i, continuation in enumerate(continuations):
        if not np.isfinite(continuation.score):
            name = names[i] if names else f"{i} of {len(pairs)}"
            raise UserError(
                f"prompt {name}: a candidate's score is {continuation.score}, which cannot be ranked; {NAN_HINT}"
            )
    return continuations


def _sequence(model: Network, before: Ids, continuation: Ids) -> ScoredSequence:
    """Cuts the ids before the continuation so that both, without the last token, fit the model's positions."""
    longest = model.config.max_positions
    if not continuation or not before:
        raise UserError("a candidate without tokens, or with nothing before it, has no score")
    if len(continuation) > longest:
        raise UserError(f"a candidate of {len(continuation)} tokens is longer than the model's {longest} positions")
    ids = [*model.cut(before, longest + 1 - len(continuation)), *continuation[:-1]]
    return ScoredSequence(ids, list(continuation))


@functools.partial(jax.jit, static_argnums=(7, 8))
def batch_log_probabilities(
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

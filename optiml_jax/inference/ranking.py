"""Rank classification (paper 4.1): the log-probability of each candidate after its prompt.

A prompt and a candidate form one sequence. Sequences are packed into rows and share common prefixes
(`prefix_sharing.py`); neither changes a score.
"""

import collections
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from optiml_jax.common.errors import UserError
from optiml_jax.inference.network import Network
from optiml_jax.inference.prefix_sharing import PackedRows, ScoredSequence, lay_out
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
    """Scores continuations: `score` of what `batches` lays out, with the arguments and errors of both."""
    return score(model, batches(model, pairs, batch_rows), names)


def batches(model: Network, pairs: Sequence[tuple[Ids, Ids]], batch_rows: int | None = None) -> list[PackedRows]:
    """Lays out continuations in batches, without using a device.

    Args:
      pairs: (ids before, ids of the continuation). Where both are too long, the ids before are cut on the left, after a
        leading `</s>`.
      batch_rows: rows computed at once; None: as many as memory allows.

    Raises:
      UserError: a continuation is empty, has nothing before it, or alone exceeds the model's positions.
    """
    sequences = [_sequence(model, before, continuation) for before, continuation in pairs]
    return lay_out(sequences, batch_rows or model.capacity.rows, model.tokenizer.pad_id, model.capacity.positions)


def score(model: Network, layout: Sequence[PackedRows], names: Sequence[str] | None = None) -> list[Continuation]:
    """Scores the continuations of `batches`, in the order in which they were given.

    Args:
      names: of the continuations, for messages.

    Raises:
      UserError: a score is NaN or infinite and cannot be ranked.
    """
    # Programs that sum over several processes deadlock on CPUs if two run at once.
    ahead = 0 if model.mesh.devices.flat[0].platform == "cpu" and jax.process_count() > 1 else 1
    scored: dict[int, Continuation] = {}
    running: collections.deque[tuple[PackedRows, tuple[jax.Array, jax.Array]]] = collections.deque()
    for batch in layout:
        with jax.set_mesh(model.mesh):
            placed = map(model.place, batch.arrays)
            running.append((batch, batch_log_probabilities(model.params, *placed, model.config, model.dtype)))
        if len(running) > ahead:
            scored |= _results(model, *running.popleft())
    for batch, on_device in running:
        scored |= _results(model, batch, on_device)
    continuations = [scored[i] for i in range(len(scored))]
    for i, continuation in enumerate(continuations):
        if not np.isfinite(continuation.score):
            name = names[i] if names else f"{i} of {len(continuations)}"
            raise UserError(
                f"prompt {name}: a candidate's score is {continuation.score}, which cannot be ranked; {NAN_HINT}"
            )
    return continuations


def _results(model: Network, batch: PackedRows, on_device: tuple[jax.Array, jax.Array]) -> dict[int, Continuation]:
    """The continuations of a batch, by their numbers; waits for the device."""
    with jax.set_mesh(model.mesh):
        log_probability_BTM, best_BT = map(model.fetch, on_device)
    scored = {}
    for i, (row, positions, slots) in batch.placements.items():
        positions = positions[len(positions) - len(slots) :]
        log_probabilities = log_probability_BTM[row, positions, slots]
        greedy = bool((log_probabilities == best_BT[row, positions]).all())
        scored[i] = Continuation(log_probabilities, greedy)
    return scored


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

"""Rows of token ids: which examples lie where (a block, planned from lengths alone) and what their positions hold."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from optiml_jax.data.packing import pack
from optiml_jax.data.permutation import key, shuffled
from optiml_jax.data.sampling import Sampler


class Store(Protocol):
    """What the loader needs of `optiml_jax.data.store.TokenStore`."""

    tokenizer_fingerprint: str

    def stats(self, task: str, split: str) -> dict: ...
    def lengths(self, task: str, split: str) -> np.ndarray: ...
    def check(self) -> None: ...
    def read_many(self, split: str, examples: Sequence[tuple[str, int]]) -> Sequence[tuple[np.ndarray, int]]: ...


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an example becomes a document of a row (`emit` says it in full).

    Attributes:
      row_length: T.
      pad_id, eos_id: OPT: 1 and 2 (`</s>` starts and ends a text).
      leading_eos: whether a document starts with `</s>`. The released OPT-IML models were trained without.
      max_segments: most documents of a row, None for no bound.
    """

    row_length: int
    pad_id: int
    eos_id: int
    leading_eos: bool = True
    max_segments: int | None = None

    def document_lengths(self, lengths: np.ndarray) -> np.ndarray:
        """Positions that examples of these lengths (source + target) take in a row, at most T."""
        return np.minimum(lengths + self.leading_eos, self.row_length)


class Document(NamedTuple):
    """One example in a row: `length` positions, the end of the example if it is longer."""

    task: str
    example: int
    length: int


Row = list[Document]


@dataclasses.dataclass(frozen=True)
class Block:
    """The plan of a block: n drawn examples in R rows.

    Attributes:
      names: of the tasks.
      tasks_n, examples_n, lengths_n: task (number in `names`), example and length in positions of each draw; int64.
      rows: R arrays of draws.
    """

    names: list[str]
    tasks_n: np.ndarray
    examples_n: np.ndarray
    lengths_n: np.ndarray
    rows: list[np.ndarray]

    def documents(self, row: int) -> Row:
        """What row number `row` holds, in order."""
        draws = self.rows[row]
        parts = self.tasks_n[draws].tolist(), self.examples_n[draws].tolist(), self.lengths_n[draws].tolist()
        return [Document(self.names[task], example, length) for task, example, length in zip(*parts)]

    def real_tokens(self, rows: slice) -> int:
        """Positions of the rows that are not padding."""
        return int(self.lengths_n[np.concatenate(self.rows[rows])].sum()) if self.rows[rows] else 0


def plan_block(sampler: Sampler, store: Store, split: str, layout: Layout, block: int) -> Block:
    """Block number `block`: drawn, shuffled, packed, and the rows shuffled.

    A pure function of (seed, block); reads lengths, no tokens. Packing sorts by length, so the first shuffle decides
    which of several equally long examples meet; the second makes consecutive rows alike in length and task.
    """
    tasks, examples = sampler.draw(block)
    lengths = np.empty(len(tasks), np.int64)
    ends = np.cumsum(np.bincount(tasks, minlength=len(sampler.names))).tolist()
    for name, start, end in zip(sampler.names, [0, *ends], ends):
        if start < end:
            lengths[start:end] = store.lengths(name, split)[examples[start:end]]
    order = shuffled(len(tasks), key(sampler.seed, "draws", block))
    lengths = layout.document_lengths(lengths[order])
    rows = pack(lengths, layout.row_length, max_segments=layout.max_segments)
    rows = [rows[row] for row in shuffled(len(rows), key(sampler.seed, "rows", block)).tolist()]
    return Block(sampler.names, tasks[order], examples[order], lengths, rows)


def emit(rows: Sequence[Row], store: Store, split: str, layout: Layout) -> dict[str, np.ndarray]:
    """Reads the examples of the rows and lays them out.

    A document of source s and target t is `</s> s t`, predicts `s t </s>`, and its label positions are those that
    predict t and the last `</s>`. Without `leading_eos` it is `s t`, and the first token is predicted by nothing. An
    example longer than a row loses the start of its source (paper 3.3), never `</s>` or label.

    Returns:
      tokens_BT, targets_BT (padding: `pad_id`), segment_ids_BT (1, 2, ... in order; 0 is padding), positions_BT (from
      0 in each document and in padding): int32 [rows, T]; label_mask_BT: bool [rows, T].
    """
    shape, size = (len(rows), layout.row_length), len(rows) * layout.row_length
    eos, padding = np.array([layout.eos_id], np.uint16), np.full(layout.row_length, layout.pad_id, np.uint16)
    pieces: list[np.ndarray] = []  # the ids of all rows, end to end
    spans: list[tuple[int, int, int]] = []  # length, segment id and label positions of each document and padding
    read = iter(store.read_many(split, [(task, example) for row in rows for task, example, _ in row]))
    for row in rows:
        room = layout.row_length
        for segment, (_, _, length) in enumerate(row, 1):
            ids, source_length = next(read)
            if layout.leading_eos:
                pieces.append(eos)
            pieces.append(ids[len(ids) - length + layout.leading_eos :])
            spans.append((length, segment, min(len(ids) - source_length + 1, length)))
            room -= length
        pieces.append(padding[:room])
        spans.append((room, 0, 0))

    lengths, segments, labels = np.array(spans, np.int32).reshape(-1, 3).T
    ends = np.cumsum(lengths, dtype=np.int32)
    tokens, targets = np.empty(size, np.int32), np.empty(size, np.int32)
    np.concatenate(pieces, out=tokens)
    targets[:-1] = tokens[1:]
    targets[layout.row_length - 1 :: layout.row_length] = layout.pad_id
    targets[ends[segments > 0] - 1] = layout.eos_id
    no_yes = np.tile([False, True], len(lengths))
    segment_ids = np.repeat(segments, lengths)
    positions = np.repeat(ends - lengths, lengths)
    np.subtract(np.arange(size, dtype=np.int32), positions, out=positions)
    positions *= segment_ids > 0
    return {
        "tokens_BT": tokens.reshape(shape),
        "targets_BT": targets.reshape(shape),
        "segment_ids_BT": segment_ids.reshape(shape),
        "positions_BT": positions.reshape(shape),
        "label_mask_BT": np.repeat(no_yes, np.stack([lengths - labels, labels], axis=1).ravel()).reshape(shape),
    }

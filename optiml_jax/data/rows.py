"""Rows of token ids: which examples lie where (a block, planned from lengths alone) and what their positions hold."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from optiml_jax.data.packing import pack
from optiml_jax.data.permutation import key, shuffled
from optiml_jax.data.sampling import Sampler
from optiml_jax.data.settings import Data

SPLIT = "train"  # the one that is tokenised


class Store(Protocol):
    """What the loader needs of `optiml_jax.data.store.TokenStore`."""

    tokenizer_fingerprint: str

    def stats(self, task: str, split: str) -> dict: ...
    def lengths(self, task: str, split: str) -> np.ndarray: ...
    def pieces(self, task: str, split: str) -> np.ndarray | None: ...
    def check(self) -> None: ...
    def read_many(self, split: str, examples: Sequence[tuple[str, int]]) -> Sequence[tuple[np.ndarray, int]]: ...


class Document(NamedTuple):
    """One example in a row: `length` positions, the end of the example if it is longer; `piece`: see `Store.pieces`."""

    task: str
    example: int
    length: int
    piece: int = 0


Row = list[Document]


@dataclasses.dataclass(frozen=True)
class Block:
    """The plan of a block: n drawn examples in R rows.

    Attributes:
      names: of the tasks.
      tasks_n, examples_n, lengths_n: task (number in `names`), example and length in positions of each draw; int64.
      pieces_n: uint8, see `Store.pieces`.
      rows: R arrays of draws.
    """

    names: list[str]
    tasks_n: np.ndarray
    examples_n: np.ndarray
    lengths_n: np.ndarray
    pieces_n: np.ndarray
    rows: list[np.ndarray]

    def documents(self, row: int) -> Row:
        """What row number `row` holds, in order."""
        draws = self.rows[row]
        parts = (x_n[draws].tolist() for x_n in (self.tasks_n, self.examples_n, self.lengths_n, self.pieces_n))
        return [Document(self.names[task], *rest) for task, *rest in zip(*parts)]

    def real_tokens(self, rows: slice) -> int:
        """Positions of the rows that are not padding."""
        return int(self.lengths_n[np.concatenate(self.rows[rows])].sum()) if self.rows[rows] else 0


def plan_block(sampler: Sampler, store: Store, data: Data, block: int) -> Block:
    """Block number `block`: drawn, shuffled, packed, and the rows shuffled.

    A pure function of (seed, block); reads lengths, no tokens. Packing sorts by length, so the first shuffle decides
    which of several equally long examples meet; the second makes consecutive rows alike in length and task.
    """
    tasks, examples = sampler.draw(block)
    lengths, pieces = np.empty(len(tasks), np.int64), np.zeros(len(tasks), np.uint8)
    ends = np.cumsum(np.bincount(tasks, minlength=len(sampler.names))).tolist()
    for name, start, end in zip(sampler.names, [0, *ends], ends):
        if start < end:
            lengths[start:end] = store.lengths(name, SPLIT)[examples[start:end]]
            flags = store.pieces(name, SPLIT)
            if flags is not None:
                pieces[start:end] = flags[examples[start:end]]
    order = shuffled(len(tasks), key(sampler.seed, "draws", block))
    lengths, pieces = lengths[order], pieces[order]
    lengths = np.minimum(lengths + data.leading_eos * (pieces < 2) - (pieces & 1), data.row_length)
    rows = pack(lengths, data.row_length, max_segments=data.max_segments)
    rows = [rows[row] for row in shuffled(len(rows), key(sampler.seed, "rows", block)).tolist()]
    return Block(sampler.names, tasks[order], examples[order], lengths, pieces, rows)


def emit(rows: Sequence[Row], store: Store, data: Data, pad_id: int, eos_id: int) -> dict[str, np.ndarray]:
    """Reads the examples of the rows and lays them out.

    A document of source s and target t is `</s> s t`, predicts `s t </s>`, and its label positions are those that
    predict t and the last `</s>`. Without `leading_eos` it is `s t`, and the first token is predicted by nothing. An
    example longer than a row loses the start of its source (paper 3.3), never `</s>` or label. A piece of a longer
    document has no `</s>` where the document goes on.

    Returns:
      tokens_BT, targets_BT (padding: `pad_id`), segment_ids_BT (1, 2, ... in order; 0 is padding), positions_BT (from
      0 in each document and in padding): int32 [rows, T]; label_mask_BT: bool [rows, T].
    """
    shape, size = (len(rows), data.row_length), len(rows) * data.row_length
    eos, padding = np.array([eos_id], np.uint16), np.full(data.row_length, pad_id, np.uint16)
    parts: list[np.ndarray] = []  # the ids of all rows, end to end
    last: list[int] = []  # what the last position of each document predicts
    spans: list[tuple[int, int, int]] = []  # length, segment id and label positions of each document and padding
    read = iter(store.read_many(SPLIT, [(task, example) for row in rows for task, example, *_ in row]))
    for row in rows:
        room = data.row_length
        for segment, (_, _, length, piece) in enumerate(row, 1):
            ids, source_length = next(read)
            last.append(ids[-1] if piece & 1 else eos_id)
            read_ids = ids[:-1] if piece & 1 else ids
            leading = data.leading_eos and piece < 2
            if leading:
                parts.append(eos)
            parts.append(read_ids[len(read_ids) - length + leading :])
            spans.append((length, segment, min(len(ids) - source_length + 1, length)))
            room -= length
        parts.append(padding[:room])
        spans.append((room, 0, 0))

    lengths, segments, labels = np.array(spans, np.int32).reshape(-1, 3).T
    ends = np.cumsum(lengths, dtype=np.int32)
    tokens, targets = np.empty(size, np.int32), np.empty(size, np.int32)
    np.concatenate(parts, out=tokens)
    targets[:-1] = tokens[1:]
    targets[data.row_length - 1 :: data.row_length] = pad_id
    targets[ends[segments > 0] - 1] = last
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

"""The plan of a block: which examples lie in which rows, computed from lengths alone."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from optiml_jax.data.packing import pack
from optiml_jax.data.permutation import key, shuffled
from optiml_jax.data.sampling import Sampler
from optiml_jax.data.settings import Data
from optiml_jax.data.store import SPLIT, EarlierLabels


class Store(Protocol):
    """The methods of `optiml_jax.data.store.TokenStore` that the loader uses."""

    tokenizer_fingerprint: str

    def stats(self, task: str, split: str) -> dict: ...
    def lengths(self, task: str, split: str) -> np.ndarray: ...
    def chunk_flags(self, task: str, split: str) -> np.ndarray | None: ...
    def earlier_labels(self, task: str, split: str) -> EarlierLabels | None: ...
    def check(self) -> None: ...
    def read_many(self, split: str, examples: Sequence[tuple[str, int]]) -> Sequence[tuple[np.ndarray, int]]: ...


class Document(NamedTuple):
    """An example in a row. `length`: its positions (the end of a longer example); `chunk`: see
    `TokenStore.chunk_flags`."""

    task: str
    example: int
    length: int
    chunk: int = 0


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """The plan of a block: n drawn examples in R rows.

    Attributes:
      names: task names.
      tasks_n, examples_n, lengths_n: task (index in `names`), example and length in positions of each draw; int64.
      chunks_n: uint8, see `TokenStore.chunk_flags`.
      rows: R arrays of indices of draws.
    """

    names: list[str]
    tasks_n: np.ndarray
    examples_n: np.ndarray
    lengths_n: np.ndarray
    chunks_n: np.ndarray
    rows: list[np.ndarray]

    def documents(self, row: int) -> list[Document]:
        """The documents of row number `row`, in order."""
        draws = self.rows[row]
        parts = (x_n[draws].tolist() for x_n in (self.tasks_n, self.examples_n, self.lengths_n, self.chunks_n))
        return [Document(self.names[task], *rest) for task, *rest in zip(*parts)]

    def real_tokens(self, rows: slice) -> int:
        """Number of positions of the rows that are not padding."""
        return int(self.lengths_n[np.concatenate(self.rows[rows])].sum()) if self.rows[rows] else 0


def plan_block(sampler: Sampler, store: Store, data: Data, block: int) -> BlockPlan:
    """Plans block number `block`: draws examples, shuffles and packs them, and shuffles the rows.

    A pure function of (seed, block); reads lengths, no tokens. Packing sorts by length, so the first shuffle decides
    which of several equally long examples share a row; the second gives consecutive rows a similar mix of lengths and
    tasks.
    """
    tasks, examples = sampler.draw(block)
    lengths, chunks = np.empty(len(tasks), np.int64), np.zeros(len(tasks), np.uint8)
    ends = np.cumsum(np.bincount(tasks, minlength=len(sampler.names))).tolist()
    for name, start, end in zip(sampler.names, [0, *ends], ends):
        if start < end:
            lengths[start:end] = store.lengths(name, SPLIT)[examples[start:end]]
            earlier = store.earlier_labels(name, SPLIT)
            if earlier is not None:
                room = data.row_length - data.leading_eos
                lengths[start:end] = earlier.fitting(examples[start:end], lengths[start:end], room)
            flags = store.chunk_flags(name, SPLIT)
            if flags is not None:
                chunks[start:end] = flags[examples[start:end]]
    order = shuffled(len(tasks), key(sampler.seed, "draws", block))
    lengths, chunks = lengths[order], chunks[order]
    lengths = np.minimum(lengths + data.leading_eos * (chunks < 2) - (chunks & 1), data.row_length)
    rows = pack(lengths, data.row_length, max_segments=data.max_segments)
    rows = [rows[row] for row in shuffled(len(rows), key(sampler.seed, "rows", block)).tolist()]
    return BlockPlan(sampler.names, tasks[order], examples[order], lengths, chunks, rows)

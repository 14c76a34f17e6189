"""The plan of a block: which examples lie in which rows, computed from lengths alone."""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from optiml_jax.data.demonstrations import NONE, Demonstrator
from optiml_jax.data.manifest import Manifest
from optiml_jax.data.packing import pack
from optiml_jax.data.permutation import key, shuffled
from optiml_jax.data.positions import positions
from optiml_jax.data.sampling import Sampler, probabilities, with_token_shares
from optiml_jax.data.settings import Data
from optiml_jax.data.store import Store


class Document(NamedTuple):
    """An example in a row.

    Attributes:
      length: its positions, with those of its demonstrations (the end of a longer example).
      chunk: see `TokenStore.chunk_flags`.
      demonstrations: examples of the same task that precede it, in order.
      separator: number of the separator after each of them.
    """

    task: str
    example: int
    length: int
    chunk: int = 0
    demonstrations: tuple[int, ...] = ()
    separator: int = 0


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """The plan of a block: n drawn examples in R rows.

    Attributes:
      names: task names.
      tasks_n, examples_n, lengths_n: task (index in `names`), example and length in positions of each draw; int64.
      chunks_n: uint8, see `TokenStore.chunk_flags`.
      rows: R arrays of indices of draws.
      demonstrations_nK, separators_n: see `demonstrations.Drawn`; None without demonstrations.
    """

    names: list[str]
    tasks_n: np.ndarray
    examples_n: np.ndarray
    lengths_n: np.ndarray
    chunks_n: np.ndarray
    rows: list[np.ndarray]
    demonstrations_nK: np.ndarray | None = None
    separators_n: np.ndarray | None = None

    def documents(self, row: int) -> list[Document]:
        """The documents of row number `row`, in order."""
        draws = self.rows[row]
        parts = (x_n[draws].tolist() for x_n in (self.tasks_n, self.examples_n, self.lengths_n, self.chunks_n))
        documents = [Document(self.names[task], *rest) for task, *rest in zip(*parts)]
        if self.demonstrations_nK is None:
            return documents
        drawn = zip(self.demonstrations_nK[draws].tolist(), self.separators_n[draws].tolist())
        return [
            document._replace(demonstrations=tuple(i for i in examples if i != NONE), separator=separator)
            for document, (examples, separator) in zip(documents, drawn)
        ]

    def real_tokens(self, rows: slice) -> int:
        """Number of positions of the rows that are not padding."""
        return int(self.lengths_n[np.concatenate(self.rows[rows])].sum()) if self.rows[rows] else 0


def mean_positions(
    store: Store, data: Data, tasks: Iterable[str], demonstrator: Demonstrator | None = None
) -> dict[str, float]:
    """Mean positions of an example of each task with its demonstrations."""
    return {
        task: float(positions(store, data, task, slice(None))[0].mean())
        + (demonstrator.estimate(task).positions if demonstrator else 0.0)
        for task in tasks
    }


def rates(store: Store, manifest: Manifest, data: Data, demonstrator: Demonstrator | None = None) -> dict[str, float]:
    """The rates at which a run draws the tasks of its mixture; see `sampling.probabilities` for the errors.

    A benchmark of `Manifest.left_out` has no share of the tokens.
    """
    by_task = probabilities(manifest, data.eps, data.proportions)
    token_shares = {name: share for name, share in (data.token_shares or {}).items() if name not in manifest.left_out}
    if not token_shares:
        return by_task
    drawn = [task for task, rate in by_task.items() if rate > 0]
    return with_token_shares(by_task, manifest.tasks, mean_positions(store, data, drawn, demonstrator), token_shares)


def plan_block(
    sampler: Sampler, store: Store, data: Data, block: int, demonstrator: Demonstrator | None = None
) -> BlockPlan:
    """Plans block number `block`: draws examples and their demonstrations, shuffles and packs them, and shuffles the
    rows.

    A pure function of (seed, block); reads lengths, no tokens. Packing sorts by length, so the first shuffle decides
    which of several equally long examples share a row; the second gives consecutive rows a similar mix of lengths and
    tasks.
    """
    tasks, examples, passes = sampler.draw(block)
    lengths, chunks = np.empty(len(tasks), np.int64), np.zeros(len(tasks), np.uint8)
    ends = np.cumsum(np.bincount(tasks, minlength=len(sampler.names))).tolist()
    for name, start, end in zip(sampler.names, [0, *ends], ends):
        if start < end:
            lengths[start:end], chunks[start:end] = positions(store, data, name, examples[start:end])
    order = shuffled(len(tasks), key(sampler.seed, "draws", block))
    demonstrations_nK = separators_n = None
    if demonstrator is not None:
        drawn = demonstrator.draw(tasks, examples, passes, data.row_length - lengths)
        lengths += drawn.positions_n
        demonstrations_nK, separators_n = drawn.examples_nK[order], drawn.separators_n[order]
    lengths, chunks = lengths[order], chunks[order]
    rows = pack(lengths, data.row_length, max_segments=data.max_segments)
    rows = [rows[row] for row in shuffled(len(rows), key(sampler.seed, "rows", block)).tolist()]
    return BlockPlan(
        sampler.names, tasks[order], examples[order], lengths, chunks, rows, demonstrations_nK, separators_n
    )

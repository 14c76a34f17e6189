"""Batches of packed rows from a token store: endless, in an order that depends on the seed alone, resumable anywhere.

The stream of rows is block 0, block 1, ...; batch s is the next B rows of it. The state is the (block, row) where the
next batch starts, the same for any number of hosts: each plans every batch and reads the rows its devices hold.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from optiml_jax.common.errors import UserError
from optiml_jax.data.manifest import Manifest
from optiml_jax.data.prefetch import Prefetcher
from optiml_jax.data.rows import SPLIT, Block, Store, emit, plan_block
from optiml_jax.data.sampling import Sampler, probabilities
from optiml_jax.data.settings import Data

if TYPE_CHECKING:
    import jax


@dataclasses.dataclass(frozen=True)
class Batch:
    """One global batch, and the rows of it that were asked for.

    Attributes:
      arrays: `tokens_BT, targets_BT, segment_ids_BT, positions_BT` int32, `label_mask_BT` bool: the rows asked for.
      state: where the batch after this one starts; `Loader.restore` takes it.
      real_tokens: positions of the global batch that are not padding.
      local_label_tokens: label positions in `arrays`, those of the rows asked for.
      row_fill: real_tokens / (B * T).
      wait_seconds: how long the consumer waited for this batch.
      rows: block and row of each row of the global batch.
    """

    arrays: dict[str, np.ndarray]
    state: dict[str, int]
    real_tokens: int
    local_label_tokens: int
    row_fill: float
    wait_seconds: float = 0.0
    rows: list[tuple[Block, int]] = dataclasses.field(default_factory=list, repr=False)

    @property
    def examples(self) -> list[list[tuple[str, int]]]:
        """(task, index in its split) of every document of the global batch, row by row."""
        return [[(task, example) for task, example, *_ in block.documents(row)] for block, row in self.rows]


class Loader:
    """Iterates over `Batch`es for ever. Close it, or use it in a `with` statement.

    Args:
      store: a `TokenStore`.
      manifest: of the mixture.
      data: rows, order and rates; where things lie is not looked at.
      pad_id, eos_id: of the tokenizer.
      rows: which rows of each global batch to read (`local_rows`); None for all.
      tokenizer_fingerprint: of the tokenizer in use, to be compared with the store's; None for no check.

    Raises:
      UserError: a mixture, task, label or tokenizer that does not fit; before anything is read.
    """

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        data: Data,
        *,
        pad_id: int,
        eos_id: int,
        rows: Sequence[int] | None = None,
        tokenizer_fingerprint: str | None = None,
    ) -> None:
        if tokenizer_fingerprint not in (None, store.tokenizer_fingerprint):
            raise UserError(
                f"the cache was made with another tokenizer ({store.tokenizer_fingerprint[:12]}, yours is "
                f"{tokenizer_fingerprint[:12]}); set TOKENIZER to the one in the cache, or cache again elsewhere"
            )
        rates = probabilities(manifest, data.eps, data.proportions)
        sizes = {name: _checked_size(store, name, data.row_length) for name, rate in rates.items() if rate > 0}
        _check_manifest(manifest, sizes)
        self._store, self._data, self._pad_id, self._eos_id = store, data, pad_id, eos_id
        self._sampler = Sampler(sizes, rates, data.seed, data.block_draws)
        self._local = range(data.batch_rows) if rows is None else rows
        self._block = functools.lru_cache(maxsize=1)(self.plan)
        self._start({"block": 0, "row": 0})

    def plan(self, block: int) -> Block:
        """Which examples lie in which rows of the block: a pure function of (seed, block)."""
        return plan_block(self._sampler, self._store, self._data, block)

    @property
    def state(self) -> dict[str, int]:
        """Where the next batch starts: plain integers, for a checkpoint. Batches made ahead do not count."""
        return dict(self._state)

    def restore(self, state: Mapping[str, int]) -> None:
        """Goes on where a batch's `state`, or `Loader.state`, points. Costs the planning of one block."""
        if set(state) != {"block", "row"} or not all(isinstance(n, int) and n >= 0 for n in state.values()):
            raise UserError(f"data position {dict(state)} is not one of ours: expected block and row, from 0 on")
        self.close()
        self._start(dict(state))

    def check(self) -> None:
        """Waits until what was read is known to be what was written; raises as `TokenStore.check`."""
        self._store.check()

    def close(self) -> None:
        """Ends the background thread."""
        self._batches.close()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch, seconds = self._batches.get()
        self._state = batch.state
        return dataclasses.replace(batch, wait_seconds=seconds)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _start(self, state: dict[str, int]) -> None:
        self._state = state
        self._batches = Prefetcher(functools.partial(self._generate, state["block"], state["row"]), self._data.prefetch)

    def _generate(self, number: int, row: int) -> Iterator[Batch]:
        """Batches from row `row` of block `number` on."""
        if row > len(self._block(number).rows):
            raise UserError(f"data position: block {number} has no row {row}; the data or its settings have changed")
        batch_rows = self._data.batch_rows
        while True:
            rows: list[tuple[Block, int]] = []
            real_tokens = 0
            while len(rows) < batch_rows:
                block = self._block(number)
                end = min(row + batch_rows - len(rows), len(block.rows))
                rows += [(block, r) for r in range(row, end)]
                real_tokens += block.real_tokens(slice(row, end))
                number, row = (number + 1, 0) if end == len(block.rows) else (number, end)
            documents = [block.documents(r) for block, r in (rows[b] for b in self._local)]
            arrays = emit(documents, self._store, self._data, self._pad_id, self._eos_id)
            yield Batch(
                arrays=arrays,
                state={"block": number, "row": row},
                real_tokens=real_tokens,
                local_label_tokens=int(np.count_nonzero(arrays["label_mask_BT"])),
                row_fill=real_tokens / (batch_rows * self._data.row_length),
                rows=rows,
            )


def _checked_size(store: Store, task: str, row_length: int) -> int:
    """Examples of the task; refuses one that has none, or a label that would have to be cut."""
    stats = store.stats(task, SPLIT)
    if not stats["examples"]:
        raise UserError(f"{task}: no examples to train on; leave the task out of the mixture and cache again")
    if stats["longest_label"] + 1 > row_length:
        raise UserError(
            f"{task}: the label of example {stats['longest_label_example']} has {stats['longest_label']} tokens "
            f"and its </s>, more than a row of {row_length}; raise ROW_LENGTH or cache again with "
            f"--max_label_tokens={row_length - 1}"
        )
    return len(store.lengths(task, SPLIT))  # read now: a file that does not match its stats is found before training


def _check_manifest(manifest: Manifest, sizes: Mapping[str, int]) -> None:
    """Refuses a mixture written for another store: rates follow from the manifest's sizes, passes from the store's."""
    for task in manifest.tasks:
        name, stated = task.name, task.examples
        if sizes.get(name, stated) != stated:
            raise UserError(
                f"mixture {manifest.name}: {name} has {stated:,} examples there and {sizes[name]:,} in the store; "
                "cache the mixture again"
            )


def local_rows(sharding: "jax.sharding.Sharding", batch_rows: int, row_length: int) -> np.ndarray:
    """Rows of the global batch that this process's devices hold, sorted: what to pass as `Loader(rows=...)`.

    Asks the sharding: where a model axis spans processes, several processes hold the same rows.
    """
    indices = sharding.addressable_devices_indices_map((batch_rows, row_length)).values()
    return np.unique(np.concatenate([np.arange(batch_rows)[rows] for rows, *_ in indices]))


def to_devices(
    arrays: Mapping[str, np.ndarray], sharding: "jax.sharding.Sharding", batch_rows: int, rows: np.ndarray | None = None
) -> dict[str, "jax.Array"]:
    """Global arrays [batch_rows, T] from the rows that this process read (`rows`, sorted; None: all of them)."""
    import jax

    rows = np.arange(batch_rows) if rows is None else rows
    place = np.full(batch_rows, len(rows))  # a row that was not read: an IndexError below
    place[rows] = np.arange(len(rows))

    def put(array: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, slice]) -> np.ndarray:
            return array[place[index[0]]][:, index[1]]

        return jax.make_array_from_callback((batch_rows, array.shape[1]), sharding, part)

    return {name: put(array) for name, array in arrays.items()}

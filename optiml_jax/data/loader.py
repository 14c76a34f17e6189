"""Batches of packed rows from a token store: endless, in an order that depends only on the seed, resumable anywhere.

The stream of rows is block 0, block 1, ...; batch s is its next B rows. The state is the (block, row) where the next
batch starts, the same for any number of hosts: each host plans every batch and reads the rows that its devices hold.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from optiml_jax.common.errors import UserError
from optiml_jax.data.batches import assemble_rows
from optiml_jax.data.block_plan import BlockPlan, plan_block, rates
from optiml_jax.data.demonstrations import Demonstrator
from optiml_jax.data.manifest import Manifest
from optiml_jax.data.prefetch import Prefetcher
from optiml_jax.data.sampling import Sampler, probabilities
from optiml_jax.data.settings import Data
from optiml_jax.data.store import SPLIT, Store

if TYPE_CHECKING:
    import jax


@dataclasses.dataclass(frozen=True)
class Batch:
    """A global batch, with the arrays of the requested rows.

    Attributes:
      arrays: `tokens_BT, targets_BT, segment_ids_BT, positions_BT` int32, `label_mask_BT` bool: the requested rows.
      state: where the next batch starts; `Loader.restore` accepts it.
      real_tokens: positions of the global batch that are not padding.
      local_label_tokens: label positions in `arrays`.
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
    rows: list[tuple[BlockPlan, int]] = dataclasses.field(default_factory=list, repr=False)

    @property
    def examples(self) -> list[list[tuple[str, int]]]:
        """(task, index in its split) of every document of the global batch, row by row."""
        return [[(task, example) for task, example, *_ in block.documents(row)] for block, row in self.rows]


class Loader:
    """Iterates over `Batch`es without end. Close it, or use it in a `with` statement.

    Args:
      store: a `TokenStore`.
      manifest: of the mixture.
      data: rows, order and rates; its paths are not used.
      pad_id, eos_id: of the tokenizer.
      rows: which rows of each global batch to read (`local_rows`); None for all.
      tokenizer_fingerprint: of the tokenizer in use, which must be the store's; None skips the check.
      separators: `demonstrations.separator_ids`; needed if the data settings ask for demonstrations.

    Attributes:
      rates: task -> share of the draws.
      demonstrator: None without demonstrations.

    Raises:
      UserError: the mixture, a task, a label or the tokenizer does not fit; raised before any token is read.
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
        separators: Sequence[np.ndarray] = (),
    ) -> None:
        if tokenizer_fingerprint not in (None, store.tokenizer_fingerprint):
            raise UserError(
                f"the cache was made with another tokenizer ({store.tokenizer_fingerprint[:12]}, yours is "
                f"{tokenizer_fingerprint[:12]}); set TOKENIZER to the one in the cache, or cache again elsewhere"
            )
        proportional = probabilities(manifest, data.eps, data.proportions)
        sizes = {name: _checked_size(store, name, data.row_length) for name, rate in proportional.items() if rate > 0}
        _check_manifest(manifest, sizes)
        lengths = [len(ids) for ids in separators]
        demonstrator = Demonstrator(store, data, sorted(sizes), lengths) if data.demonstrations is not None else None
        if demonstrator is not None:
            demonstrator.check()
        # reads the lengths of examples, which are checked by now
        self.rates = rates(store, manifest, data, demonstrator)
        self._store, self._data, self._pad_id, self._eos_id = store, data, pad_id, eos_id
        self._separators = separators
        self._sampler = Sampler(sizes, self.rates, data.seed, data.block_draws)
        self.demonstrator = demonstrator and demonstrator.only(self._sampler.names)  # some have no share of the tokens
        self._local = range(data.batch_rows) if rows is None else rows
        self._block = functools.lru_cache(maxsize=1)(self.plan)
        self._start({"block": 0, "row": 0})

    def plan(self, block: int) -> BlockPlan:
        """Which examples lie in which rows of a block: a pure function of (seed, block)."""
        return plan_block(self._sampler, self._store, self._data, block, self.demonstrator)

    @property
    def state(self) -> dict[str, int]:
        """Position of the next batch as plain integers, for a checkpoint. Prefetched batches do not count."""
        return dict(self._state)

    def restore(self, state: Mapping[str, int]) -> None:
        """Continues from a batch's `state` or `Loader.state`. Costs the planning of one block."""
        if set(state) != {"block", "row"} or not all(isinstance(n, int) and n >= 0 for n in state.values()):
            raise UserError(f"data position {dict(state)} is invalid; expected block and row, both at least 0")
        self.close()
        self._start(dict(state))

    def check(self) -> None:
        """Waits until everything read so far is verified; raises as `TokenStore.check`."""
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
        """Yields batches from row `row` of block `number` on."""
        if row > len(self._block(number).rows):
            raise UserError(f"data position: block {number} has no row {row}; the data or its settings have changed")
        batch_rows = self._data.batch_rows
        while True:
            rows: list[tuple[BlockPlan, int]] = []
            real_tokens = 0
            while len(rows) < batch_rows:
                block = self._block(number)
                end = min(row + batch_rows - len(rows), len(block.rows))
                rows += [(block, r) for r in range(row, end)]
                real_tokens += block.real_tokens(slice(row, end))
                number, row = (number + 1, 0) if end == len(block.rows) else (number, end)
            documents = [block.documents(r) for block, r in (rows[b] for b in self._local)]
            arrays = assemble_rows(documents, self._store, self._data, self._pad_id, self._eos_id, self._separators)
            yield Batch(
                arrays=arrays,
                state={"block": number, "row": row},
                real_tokens=real_tokens,
                local_label_tokens=int(np.count_nonzero(arrays["label_mask_BT"])),
                row_fill=real_tokens / (batch_rows * self._data.row_length),
                rows=rows,
            )


def _checked_size(store: Store, task: str, row_length: int) -> int:
    """Number of examples of a task; refuses a task without examples, or with a label longer than a row."""
    stats = store.stats(task, SPLIT)
    if not stats["examples"]:
        raise UserError(f"{task}: no examples to train on; leave the task out of the mixture and cache again")
    if stats["longest_label"] + 1 > row_length:
        raise UserError(
            f"{task}: the label of example {stats['longest_label_example']} has {stats['longest_label']} tokens "
            f"and its </s>, more than a row of {row_length}; raise ROW_LENGTH, or skip such examples with "
            f"MAX_LABEL_TOKENS = {row_length - 1} (tools.cache_tasks --max_label_tokens)"
        )
    return len(store.lengths(task, SPLIT))  # read here, so that a damaged index is reported before training


def _check_manifest(manifest: Manifest, sizes: Mapping[str, int]) -> None:
    """Refuses a manifest of another store: rates follow from the manifest's sizes, passes from the store's."""
    for task in manifest.tasks:
        name, stated = task.name, task.examples
        if sizes.get(name, stated) != stated:
            raise UserError(
                f"mixture {manifest.name}: {name} has {stated:,} examples in the manifest and {sizes[name]:,} in the "
                "store; "
                "cache the mixture again"
            )


def local_rows(sharding: "jax.sharding.Sharding", batch_rows: int, row_length: int) -> np.ndarray:
    """Rows of the global batch that this process's devices hold, sorted; pass them as `Loader(rows=...)`.

    Where a model axis spans processes, several processes hold the same rows.
    """
    indices = sharding.addressable_devices_indices_map((batch_rows, row_length)).values()
    return np.unique(np.concatenate([np.arange(batch_rows)[rows] for rows, *_ in indices]))


def to_devices(
    arrays: Mapping[str, np.ndarray], sharding: "jax.sharding.Sharding", batch_rows: int, rows: np.ndarray | None = None
) -> dict[str, "jax.Array"]:
    """Makes global arrays [batch_rows, T] from the rows that this process read (`rows`, sorted; None: all of them)."""
    import jax

    rows = np.arange(batch_rows) if rows is None else rows
    index_of_row = np.full(batch_rows, len(rows))  # out of range, so that a row that was not read raises IndexError
    index_of_row[rows] = np.arange(len(rows))

    def put(array: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, slice]) -> np.ndarray:
            return array[index_of_row[index[0]]][:, index[1]]

        return jax.make_array_from_callback((batch_rows, array.shape[1]), sharding, part)

    return {name: put(array) for name, array in arrays.items()}

"""Estimates the size of a store before it is written, by tokenizing a few examples of each task."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from optiml_jax.common.errors import UserError
from optiml_jax.common.tables import counted
from optiml_jax.data.store import INDEX_DTYPE, INPUT_DTYPE, SPLIT, TOKEN_DTYPE
from tasks.caching import shard
from tasks.caching.work_item import Job, Origin, worker
from tasks.example import Example, Skipped
from tasks.prompting import prompts
from tasks.prompting.subsampling import Pool, RecordTemplate

SAMPLE = 1024  # minimum number of examples tokenized in total
MIN_PER_TASK = 4  # lengths within a task vary by a third, so 200 tasks are estimated to about 1%


@dataclass(frozen=True)
class StorePlan:
    """Estimated output; `bytes` is the size of tokens, index and ids."""

    tasks: int
    examples: int
    tokens: int
    bytes: int

    def __str__(self) -> str:
        size = f"{self.bytes / 1e9:,.1f} GB" if self.bytes >= 1e9 else f"{self.bytes / 1e6:,.1f} MB"
        contents = f"{counted(self.tasks, 'task')}, {counted(self.examples, 'example')}"
        return f"planned: {contents}, {self.tokens:,} tokens, {size}"


def plan(job: Job, origins: Sequence[Origin], map_: Callable[[Callable, Iterable], Iterable]) -> StorePlan:
    """Estimates the size of tasks in the store. Examples are counted, not estimated.

    Args:
      map_: applies a function to items, see `pipeline.workers`.
    """
    each = max(MIN_PER_TASK, math.ceil(SAMPLE / len(origins)))
    sums = map_(functools.partial(_task, job=job, each=each), origins)
    sums = list(tqdm(sums, "planning", len(origins), unit="task", leave=False, delay=1))
    return StorePlan(len(origins), *(round(sum(column)) for column in zip(*sums)))


def _task(origin: Origin, job: Job, each: int) -> tuple[int, float, float]:
    """Examples, tokens and bytes of one task, estimated from `each` of its examples, evenly spaced."""
    tasks, tokenizer = worker(job, origin.tokenizer)
    task = tasks[origin.task]
    try:
        pool = Pool(task, SPLIT, most=0)  # all pairs, with equal probability
        count = min(pool.choice.records, task.max_examples)
        pairs = list(_spaced(pool, pool.choice.pairs, each, prompts.draw("plan", task.name, SPLIT)))
        rendered = [(task.pair_id(*pair), task.render(*pair)) for pair in pairs]
    except UserError:  # the pipeline will report it, and continue with the other tasks
        return 0, 0.0, 0.0
    named = [(name, example) for name, example in rendered if isinstance(example, Example)]
    if not named:
        return 0, 0.0, 0.0
    rows = shard.encode_examples(named, tokenizer)
    tokens = sum(len(row.source) + len(row.label) for row in rows)
    record = INDEX_DTYPE.itemsize + INPUT_DTYPE.itemsize * any(row.input_start for row in rows)
    share = count / len(named if len(task.templates) > 1 else pairs)  # with several templates, only fitting pairs count
    size = share * (TOKEN_DTYPE.itemsize * tokens + sum(len(f"{name}\n".encode()) for name, _ in named))
    return round(share * len(named)), share * tokens, size + record * share * len(named)


def _spaced(pool: Pool, total: int, count: int, draw: int) -> Iterator[RecordTemplate]:
    """`count` of `total` pairs, one at a random position in each of `count` equal intervals."""
    count = min(count, total)
    intervals = ((i * total // count, (i + 1) * total // count) for i in range(count))
    positions = {start + draw % (stop - start) for start, stop in intervals}
    pairs = (pair for pair in pool if not isinstance(pair, Skipped))
    return (pair for position, pair in enumerate(pairs) if position in positions)

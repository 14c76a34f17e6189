"""How large a store will be, before it is written: raw files are read, a few examples of each task tokenised."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from optiml_jax.common.errors import UserError
from optiml_jax.data.store import INDEX_DTYPE, TOKEN_DTYPE
from optiml_jax.tokenizer import Tokenizer, join
from tasks.caching import shard
from tasks.caching.shard import SPLIT
from tasks.example import Example, Skipped
from tasks.prompting import prompts
from tasks.prompting.subsampling import Pair, Pool
from tasks.task import Task

SAMPLE = 1024  # examples tokenised in all, and at least
AT_LEAST = 4  # of a task; examples of a task differ by a third in length, so 200 tasks are known to about 1%


@dataclass(frozen=True)
class Plan:
    """What is to be written; `bytes` of tokens, index and ids."""

    tasks: int
    examples: int
    tokens: int
    bytes: int

    def __str__(self) -> str:
        size = f"{self.bytes / 1e9:,.1f} GB" if self.bytes >= 1e9 else f"{self.bytes / 1e6:,.1f} MB"
        return f"planned: {self.tasks:,} tasks, {self.examples:,} examples, {self.tokens:,} tokens, {size}"


def plan(pending: Sequence[Task], tokenizer: Tokenizer) -> Plan:
    """Estimates what `pending` will take in the store. Examples are counted, not estimated."""
    each = max(AT_LEAST, math.ceil(SAMPLE / len(pending)))
    sums = [_task(task, each, tokenizer) for task in tqdm(pending, "planning", unit="task", leave=False, delay=1)]
    return Plan(len(pending), *(round(sum(column)) for column in zip(*sums)))


def _task(task: Task, each: int, tokenizer: Tokenizer) -> tuple[int, float, float]:
    """Examples, tokens and bytes of one task, from `each` of its examples, evenly spaced."""
    try:
        pool = Pool(task, SPLIT, most=0)  # all pairs, as likely to be taken as each other
        count = min(pool.choice.records, task.max_examples)
        pairs = list(_spaced(pool, pool.choice.pairs, each, prompts.draw("plan", task.name, SPLIT)))
        rendered = [(task.pair_id(*pair), task.render(*pair)) for pair in pairs]
    except UserError:  # the pipeline will say so, and go on with the other tasks
        return 0, 0.0, 0.0
    named = [(name, example) for name, example in rendered if isinstance(example, Example)]
    if not named:
        return 0, 0.0, 0.0
    joined = [join(example.source, example.target, example.separator) for _, example in named]
    tokens = sum(len(source) + len(label) for source, label in zip(*shard.encode(joined, tokenizer)))
    share = count / len(named if len(task.templates) > 1 else pairs)  # of several templates, those that fit are taken
    size = share * (TOKEN_DTYPE.itemsize * tokens + sum(len(f"{name}\n".encode()) for name, _ in named))
    return round(share * len(named)), share * tokens, size + INDEX_DTYPE.itemsize * share * len(named)


def _spaced(pool: Pool, total: int, count: int, draw: int) -> Iterator[Pair]:
    """`count` pairs of `total`, one at a random place of each of as many equal stretches."""
    count = min(count, total)
    stretches = ((i * total // count, (i + 1) * total // count) for i in range(count))
    wanted = {start + draw % (stop - start) for start, stop in stretches}
    pairs = (pair for pair in pool if not isinstance(pair, Skipped))
    return (pair for place, pair in enumerate(pairs) if place in wanted)

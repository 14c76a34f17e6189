"""How large a store will be, before it is written: raw files are read, a few examples of each split tokenised."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from optiml_jax.data.store import INDEX_DTYPE, TOKEN_DTYPE
from optiml_jax.errors import UserError
from optiml_jax.opt.tokenizer import Tokenizer, join
from tasks import prompts, shards
from tasks.example import Record
from tasks.registry import Task

SAMPLE = 1024  # examples tokenised in all, and at least
AT_LEAST = 4  # of a split; examples of a split differ by a third in length, so 200 splits are known to about 1%


@dataclass(frozen=True)
class Plan:
    """What is to be written; `bytes` of tokens, index, ids and prompts."""

    splits: int
    examples: int
    tokens: int
    bytes: int

    def __str__(self) -> str:
        size = f"{self.bytes / 1e9:,.1f} GB" if self.bytes >= 1e9 else f"{self.bytes / 1e6:,.1f} MB"
        return f"planned: {self.splits:,} splits, {self.examples:,} examples, {self.tokens:,} tokens, {size}"


def plan(pending: Sequence[tuple[Task, str]], tokenizer: Tokenizer) -> Plan:
    """Estimates what `pending` will take in the store. Examples are counted, not estimated."""
    each = max(AT_LEAST, math.ceil(SAMPLE / len(pending)))
    sums = [
        _split(task, split, each, tokenizer)
        for task, split in tqdm(pending, "planning", unit="split", leave=False, delay=1)
    ]
    return Plan(len(pending), *(round(sum(column)) for column in zip(*sums)))


def _split(task: Task, split: str, each: int, tokenizer: Tokenizer) -> tuple[int, float, float]:
    """Examples, tokens and bytes of one split, from `each` of its records, evenly spaced."""
    try:
        records = [record for record in task.select(split).records if isinstance(record, Record)]
        examples = [task.render(record) for record in _spaced(records, each, prompts.draw("plan", task.name, split))]
    except UserError:  # the pipeline will say so, and go on with the other tasks
        return 0, 0.0, 0.0
    if not examples:
        return 0, 0.0, 0.0
    encoded = zip(*shards.encode([join(example.source, example.target) for example in examples], tokenizer))
    tokens = sum(len(source) + len(label) for source, label in encoded)
    text = sum(len(shards.id_line(example)) for example in examples)
    text += 0 if split == "train" else sum(len(shards.prompt_line(task, example)) for example in examples)
    share = len(records) / len(examples)
    size = share * (TOKEN_DTYPE.itemsize * tokens + text) + INDEX_DTYPE.itemsize * len(records)
    return len(records), share * tokens, size


def _spaced(records: Sequence[Record], count: int, draw: int) -> Iterator[Record]:
    """`count` records, one at a random place of each of as many equal stretches of the file."""
    count = min(count, len(records))
    for i in range(count):
        start, stop = i * len(records) // count, (i + 1) * len(records) // count
        yield records[start + draw % (stop - start)]

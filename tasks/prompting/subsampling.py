"""Subsampling of a split: of all pairs of a record and a template, a fixed number is taken (paper 4.1).

"We merged all prompt data for a task with N examples and randomly take N prompts from the pool such that the training
task distribution is kept the same regardless of how many prompts are given for the tasks." The selection depends only
on hashes of the pairs' names, so it is the same for any order of files and any distribution of the work.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from optiml_jax.common.errors import DataError
from tasks.example import Example, Record, Skipped, Template
from tasks.prompting import prompts
from tasks.task import Task

BATCH = 1 << 16  # hashes compared at once
MAX_BAD = 0.01  # fraction of a split's records that may be unusable
REMEDY = "correct or remove the file, or pass --allow_empty_tasks (in a gin file Data.allow_empty_tasks = True)"
ALLOW = "correct them or pass --allow_bad_records (in a gin file ALLOW_BAD_RECORDS = True)"
IN_MEMORY_BYTES = 64 << 20  # a task with fewer raw bytes is read once and held in memory


class RecordTemplate(NamedTuple):
    """A record and the template to render it with."""

    record: Record
    template: Template


class Choice(NamedTuple):
    """The selection of a split, computed in one pass over it.

    Attributes:
      records: number of usable records; raw: including unusable ones.
      pairs: number of selected pairs.
      last: a pair is selected if its hash is at most this; None: all are.
    """

    records: int
    raw: int
    pairs: int
    last: int | None


class Pool:
    """The (record, template) pairs of one split of a task. Iterating may raise the errors of `_choose`.

    Args:
      templates: ids; None: all of the task's.
      most: number of pairs to select, 0 for all. None: the number of records, at most the task's cap.
      choice: the selection, if another process has computed it; None: computed when needed.
    """

    def __init__(
        self,
        task: Task,
        split: str,
        templates: Iterable[str] | None = None,
        most: int | None = None,
        choice: Choice | None = None,
    ) -> None:
        ids = None if templates is None else set(templates)
        self.templates = [template for template in task.templates if ids is None or template.id in ids]
        self.task, self._split, self._most, self._choice = task, split, most, choice
        self._in_memory: list[Record | Skipped] | None = None
        self._rendered: dict[
            str, Example
        ] = {}  # by pair, in a small split: rendered by the selection, reused on writing

    @property
    def choice(self) -> Choice:
        """The selection."""
        if self._choice is None:
            self._choice = self._choose()
        return self._choice

    def __iter__(self) -> Iterator[RecordTemplate | Skipped]:
        return self.shard(0, 1)

    def shard(self, number: int, shards: int) -> Iterator[RecordTemplate | Skipped]:
        """The selected pairs of every `shards`-th record, in file order, and the unusable ones of these records."""
        last = self.choice.last
        for record in itertools.islice(self._records(), number, None, shards):
            if isinstance(record, Skipped):
                yield record
                continue
            for template in self.templates:
                if last is None or self._hash(self.task.pair_id(record, template)) <= last:
                    yield RecordTemplate(record, template)

    def render(self, pair: RecordTemplate) -> Example | Skipped:
        """Renders a pair like `Task.render`, reusing the example if the selection has rendered it."""
        example = self._rendered.pop(self.task.pair_id(*pair), None) if self._rendered else None
        return example or self.task.render(*pair)

    def _records(self) -> Iterable[Record | Skipped]:
        """The records of the split: from memory if it is small, else from its files."""
        if self._in_memory is None and sum(file.stat().st_size for file in self.task.files) <= IN_MEMORY_BYTES:
            self._in_memory = list(self.task.read(self._split))
        return self.task.read(self._split) if self._in_memory is None else self._in_memory

    def _hash(self, name: str) -> int:
        return prompts.draw("cap" if self._most is None else "ledger", self.task.name, name)

    def _choose(self) -> Choice:
        """Computes the selection in one pass over the split; memory is proportional to the number of selected pairs.

        Raises:
          DataError: a file cannot be read, all records are unusable, or more than 1% are and that is not allowed.
        """
        first: Skipped | None = None
        records = bad = 0

        def usable() -> Iterator[Record]:
            nonlocal first, records, bad
            for record in self._records():
                if isinstance(record, Skipped):
                    first, bad = first or record, bad + 1
                else:
                    records += 1
                    yield record

        bound, last = self.task.max_examples if self._most is None else self._most, None
        names = (self.task.pair_id(record, template) for record in usable() for template in self.templates)
        if not bound:
            taken = sum(1 for _ in names)
        elif self._most is None and len(self.templates) > 1:
            smallest = _smallest(map(self._hash, names), 2 * bound)
            if taken := min(records, bound):
                last, taken = self._last_that_fits(taken, smallest[: 2 * taken])
        else:
            head = list(itertools.islice(names, bound + 1))  # usually all of them, and then no hash is needed
            if (taken := len(head)) > bound:
                last, taken = _smallest(map(self._hash, itertools.chain(head, names)), bound)[-1], bound
        choice = Choice(records, records + bad, taken, last)
        self._check(choice, first)
        return choice

    def _last_that_fits(self, count: int, hashes: list[int]) -> tuple[int | None, int]:
        """The threshold below which exactly `count` pairs render, and how many pairs lie below it: a task with N
        records has N training examples even if some of its templates fit only some of its records.

        Args:
          hashes: the smallest ones, in order. Usually the first `count` all fit; otherwise further ones are tried.
        """
        tried: list[tuple[int, bool]] = []
        for after, last in ((-1, hashes[count - 1]), (hashes[count - 1], hashes[-1]), (hashes[-1], None)):
            tried += sorted(self._try(after, last))
            fitting = itertools.accumulate(fits for _, fits in tried)
            index = next((index for index, total in enumerate(fitting) if total == count), None)
            if index is not None:
                return tried[index][0], index + 1
        return None, len(tried)

    def _try(self, after: int, last: int | None) -> Iterator[tuple[int, bool]]:
        """The hashes in a range (None: no upper end), and whether the template of each pair fits its record."""
        first = after < 0  # about one pair per record, so that keeping them takes no more memory than the split
        for record in self._records():
            if isinstance(record, Record):
                for template in self.templates:
                    hash_ = self._hash(name := self.task.pair_id(record, template))
                    if hash_ > after and (last is None or hash_ <= last):
                        example = self.task.render(record, template)
                        if (fits := isinstance(example, Example)) and first and self._in_memory is not None:
                            self._rendered[name] = example
                        yield hash_, fits

    def _check(self, choice: Choice, first: Skipped | None) -> None:
        """Refuses a split with too many unusable records; `first` is the first of them."""
        bad, options = choice.raw - choice.records, self.task.options
        if bad and not choice.records and not options.allow_empty_tasks:
            raise DataError(
                f"{first.where}: {first.reason}, and no other record of {self._split} can be used; {REMEDY}"
            )
        if bad > MAX_BAD * choice.raw and not options.allow_bad_records:
            more = f" ({bad} of {choice.raw} records)"
            raise DataError(f"{first.where}: {first.reason}{more}; {ALLOW}")


def _smallest(hashes: Iterator[int], count: int) -> list[int]:
    """The `count` smallest of a stream of 64-bit hashes, in order; memory is proportional to `count`."""
    smallest = np.empty(0, np.uint64)
    while len(batch := np.fromiter(itertools.islice(hashes, max(count, BATCH)), np.uint64)):
        smallest = np.concatenate((smallest, batch))
        if len(smallest) > count:
            smallest = np.partition(smallest, count - 1)[:count]
    return np.sort(smallest).tolist()


def examples(task: Task, split: str) -> Iterator[Example | Skipped]:
    """The examples of a split without demonstrations, in file order: the selected ones for training, else all."""
    pool = Pool(task, split, most=None if split == "train" else 0)
    for pair in pool:
        yield pair if isinstance(pair, Skipped) else pool.render(pair)

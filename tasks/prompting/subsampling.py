"""The pool of a split: every pair of a record and a template, of which so many are taken (paper 4.1).

"We merged all prompt data for a task with N examples and randomly take N prompts from the pool such that the training
task distribution is kept the same regardless of how many prompts are given for the tasks." What is taken follows from
hashes of the pairs' names alone: whatever the order of the files and however the work is shared out, it is the same.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from optiml_jax.common.errors import DataError
from tasks.example import Example, Record, Skipped, Template
from tasks.prompting import prompts
from tasks.task import Task

BATCH = 1 << 16  # draws looked at together
MAX_BAD = 0.01  # of a split's records, before it is an error
WAY_OUT = "remove the file or pass --allow_empty_tasks"
IN_MEMORY_BYTES = 64 << 20  # raw bytes of a task up to which a split's records are read once and kept


class Pair(NamedTuple):
    record: Record
    template: Template


class Choice(NamedTuple):
    """What is taken of a split, found in one pass over it.

    Attributes:
      records: usable ones; raw: with those that are not.
      pairs: taken.
      last: a pair is taken when its draw is at most this; None: all are.
    """

    records: int
    raw: int
    pairs: int
    last: int | None


class Pool:
    """The pairs of one split of a task. Raises as `choose` where pairs are asked for.

    Args:
      templates: ids; None: all of the task's.
      most: pairs taken, 0 for all. None: as many as there are records, and no more than the task's cap.
      choice: found before, for this split by another process; None: found when it is needed.
    """

    def __init__(
        self,
        task: Task,
        split: str,
        templates: Iterable[str] | None = None,
        most: int | None = None,
        choice: Choice | None = None,
    ) -> None:
        wanted = None if templates is None else set(templates)
        self.templates = [one for one in task.templates if wanted is None or one.id in wanted]
        self.task, self._split, self._most, self._choice = task, split, most, choice
        self._kept: list[Record | Skipped] | None = None
        self._rendered: dict[str, Example] = {}  # by pair, of a small split: what choosing rendered and writing takes

    @property
    def choice(self) -> Choice:
        """What is taken."""
        if self._choice is None:
            self._choice = self._choose()
        return self._choice

    def __iter__(self) -> Iterator[Pair | Skipped]:
        return self.shard(0, 1)

    def shard(self, number: int, shards: int) -> Iterator[Pair | Skipped]:
        """The pairs of every `shards`-th record, in file order, and what of these records cannot be used."""
        last = self.choice.last
        for record in itertools.islice(self._records(), number, None, shards):
            if isinstance(record, Skipped):
                yield record
                continue
            for template in self.templates:
                if last is None or self._draw(self.task.pair_id(record, template)) <= last:
                    yield Pair(record, template)

    def render(self, pair: Pair) -> Example | Skipped:
        """The example of a pair, as `Task.render`: rendered now, or taken from what choosing among pairs rendered."""
        example = self._rendered.pop(self.task.pair_id(*pair), None) if self._rendered else None
        return example or self.task.render(*pair)

    def _records(self) -> Iterable[Record | Skipped]:
        """The split again: from memory where it is small, else from its files."""
        if self._kept is None and sum(file.stat().st_size for file in self.task.files) <= IN_MEMORY_BYTES:
            self._kept = list(self.task.read(self._split))
        return self.task.read(self._split) if self._kept is None else self._kept

    def _draw(self, name: str) -> int:
        return prompts.draw("cap" if self._most is None else "ledger", self.task.name, name)

    def _choose(self) -> Choice:
        """One pass over the split, in memory for as many names as pairs are taken.

        Raises:
          DataError: a file cannot be read, or more than 1% of the records are unusable and that is not allowed, or
            all are.
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
            smallest = _smallest(map(self._draw, names), 2 * bound)
            if taken := min(records, bound):
                last, taken = self._last_that_fits(taken, smallest[: 2 * taken])
        else:
            head = list(itertools.islice(names, bound + 1))  # mostly these are all: no draw is needed
            if (taken := len(head)) > bound:
                last, taken = _smallest(map(self._draw, itertools.chain(head, names)), bound)[-1], bound
        choice = Choice(records, records + bad, taken, last)
        self._check(choice, first)
        return choice

    def _last_that_fits(self, wanted: int, draws: list[int]) -> tuple[int | None, int]:
        """The draw up to which so many pairs fit each other, and how many pairs are up to it: N examples are trained on
        where a task has N, also where some of its templates are for some of its records.

        Args:
          draws: the smallest ones, in order. Most often the first `wanted` all fit; else further ones are tried.
        """
        found: list[tuple[int, bool]] = []
        for after, last in ((-1, draws[wanted - 1]), (draws[wanted - 1], draws[-1]), (draws[-1], None)):
            found += sorted(self._tried(after, last))
            fitting = itertools.accumulate(fits for _, fits in found)
            place = next((place for place, count in enumerate(fitting) if count == wanted), None)
            if place is not None:
                return found[place][0], place + 1
        return None, len(found)

    def _tried(self, after: int, last: int | None) -> Iterator[tuple[int, bool]]:
        """The draws between these two (None: no end), and whether the template of each fits its record."""
        first = after < 0  # one pair a record: as large as the split
        for record in self._records():
            if isinstance(record, Record):
                for template in self.templates:
                    draw = self._draw(name := self.task.pair_id(record, template))
                    if draw > after and (last is None or draw <= last):
                        example = self.task.render(record, template)
                        if (fits := isinstance(example, Example)) and first and self._kept is not None:
                            self._rendered[name] = example
                        yield draw, fits

    def _check(self, choice: Choice, first: Skipped | None) -> None:
        """Refuses a split of which too much cannot be used; `first` is its first bad record."""
        bad, options = choice.raw - choice.records, self.task.options
        if bad and not choice.records and not options.allow_empty_tasks:
            raise DataError(
                f"{first.where}: {first.reason}, and no other record of {self._split} can be used; {WAY_OUT}"
            )
        if bad > MAX_BAD * choice.raw and not options.allow_bad_records:
            more = f" ({bad} of {choice.raw} records)"
            raise DataError(f"{first.where}: {first.reason}{more}; mend them or pass --allow_bad_records")


def _smallest(draws: Iterator[int], count: int) -> list[int]:
    """The smallest of a stream of 64-bit draws, in order; in memory for little more than so many."""
    kept = np.empty(0, np.uint64)
    while len(batch := np.fromiter(itertools.islice(draws, max(count, BATCH)), np.uint64)):
        kept = np.concatenate((kept, batch))
        if len(kept) > count:
            kept = np.partition(kept, count - 1)[:count]
    return np.sort(kept).tolist()


def examples(task: Task, split: str) -> Iterator[Example | Skipped]:
    """The examples of a split without demonstrations, in file order: those that are trained on, or all of another."""
    pool = Pool(task, split, most=None if split == "train" else 0)
    for pair in pool:
        yield pair if isinstance(pair, Skipped) else pool.render(pair)

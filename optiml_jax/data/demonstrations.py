"""Demonstrations in training: solved examples of the same task before an example (MetaICL, paper 4.8).

They are drawn when rows are planned, not when a task is cached, so that their number and separator are settings of a
run. What an example gets is a pure function of (seed, task, pass, example): k from Zipf's distribution over 0..K, and k
other records of the task, uniformly and without repetition. Of a record with several templates, one of its examples is
taken. Documents and conversations get none.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from optiml_jax.common.errors import UserError
from optiml_jax.data.permutation import hashed, key
from optiml_jax.data.positions import positions
from optiml_jax.data.settings import CLIPPED, RANDOM, Data
from optiml_jax.data.store import SPLIT, Store

# The paper suggests random separators and does not state a set (footnote 11).
RANDOM_SEPARATORS = ("\n\n\n", "\n\n", "\n\n\n\n", "\n###\n", "\n***\n", "\n---\n", "\n\n###\n\n", "\n=====\n")
NONE = -1  # no demonstration
LISTED = 5  # numbers of demonstrations whose shares are printed
SAMPLE = 1_024  # examples per task from which the mean length of demonstrations is estimated


def distribution(a: float, most: int, cap: str) -> np.ndarray:
    """Probabilities of k = 0, ..., `most` demonstrations: that of rank k + 1 in Zipf's distribution of shape `a`.

    Args:
      cap: "renormalised": ranks above `most` + 1 do not exist, which gives the paper's 92.5% and 67.1% for k = 0 at
        a = 4 and 2. "clipped": they count as `most` (footnote 9), which gives 92.4% and 60.8%.
    """
    weights = np.arange(1, most + 2, dtype=np.float64) ** -a
    if cap == CLIPPED:
        from scipy.special import zeta

        weights[-1] = zeta(a, most + 1)
    return weights / weights.sum()


def separators(data: Data) -> Sequence[str]:
    """The separators of a run, one of which is drawn for each example."""
    if data.demonstrations is None:
        return ()
    return RANDOM_SEPARATORS if data.demonstration_separator == RANDOM else (data.demonstration_separator,)


def separator_ids(data: Data, encode: Callable[[str], Sequence[int]]) -> list[np.ndarray]:
    """The tokens of each separator as they are between an answer and the next example, uint16.

    A separator ends in a line break, which may share a token with line breaks before it, but not with a letter after
    it.
    """
    after = len(encode("a"))
    return [np.array(encode(f"{text}a")[:-after], np.uint16) for text in separators(data)]


class Drawn(NamedTuple):
    """The demonstrations of n examples.

    Attributes:
      counts_n: numbers that were drawn, before those that the row has no space for are dropped.
      examples_nK: int32, example numbers in order; `NONE` where there is none.
      positions_n: int64, positions that they take, with their separators.
      separators_n: uint8, number of the separator.
    """

    counts_n: np.ndarray
    examples_nK: np.ndarray
    positions_n: np.ndarray
    separators_n: np.ndarray


class Estimate(NamedTuple):
    """Estimated means over the examples of a task.

    Attributes:
      drawn: demonstrations drawn for an example, with those that are dropped.
      shown: demonstrations before an example.
      positions: positions of the demonstrations of an example and of their separators.
      suffix_labels: label positions of an example with the objective "suffix".
    """

    drawn: float
    shown: float
    positions: float
    suffix_labels: float


class Demonstrator:
    """Draws demonstrations for any examples of the tasks of a run.

    Attributes:
      without: tasks whose examples get none, because they are documents or conversations.
      few: tasks with fewer than K other records; their examples get at most that many.
    """

    def __init__(self, store: Store, data: Data, names: Sequence[str], separator_lengths: Sequence[int]) -> None:
        """`names`: tasks; `separator_lengths`: tokens of each separator."""
        if not len(separator_lengths):
            raise ValueError("demonstrations need the tokens of their separators; see separator_ids")
        self.names, self.data, self._store = list(names), data, store
        self.most = data.max_demonstrations
        self.probabilities = distribution(data.demonstrations, self.most, data.demonstration_cap)
        bounds = np.minimum(np.cumsum(self.probabilities)[:-1] * 2.0**64, np.nextafter(2.0**64, 0))
        self._bounds = bounds.astype(np.uint64)  # of the hash that selects k
        self._separator_lengths = np.array(separator_lengths, np.int64)
        self._keys = np.array([key(data.seed, "demonstrations", name) for name in names], np.uint64)
        eligible = [_has_demonstrations(store, name) for name in names]
        records = [_records(store, name) for name in names]
        self._others = np.array([count - 1 if can else 0 for count, can in zip(records, eligible)], np.int64)
        self.without = [name for name, can in zip(names, eligible) if not can]
        self._estimates: dict[str, Estimate] = {}
        self.few = [name for name, can, count in zip(names, eligible, records) if can and count - 1 < self.most]

    def __str__(self) -> str:
        """Describes the demonstrations, as in "demonstrations: none for 92.5% of the examples, 1 for 5.8%, ..."."""
        zero, *more = self.probabilities.tolist()
        text = f"demonstrations: none for {zero:.1%} of the examples, "
        text += ", ".join(f"{k} for {share:.1%}" for k, share in enumerate(more[:LISTED], 1))
        if self.most > LISTED:
            text += f", {LISTED + 1} to {self.most} for {sum(more[LISTED:]):.1%}"
        for names, reason in (
            (self.few, f"have fewer than {self.most} others to show, and show those"),
            (self.without, "have documents or conversations, and show none"),
        ):
            if names:
                text += f"; {len(names)} of {len(self.names)} tasks {reason} ({', '.join(names[:3])}"
                text += f" and {len(names) - 3} more)" if len(names) > 3 else ")"
        return text

    def only(self, names: Sequence[str]) -> "Demonstrator":
        """Draws the same demonstrations for some of the tasks."""
        return self if self.names == names else Demonstrator(self._store, self.data, names, self._separator_lengths)

    def draw(self, tasks_n: np.ndarray, examples_n: np.ndarray, passes_n: np.ndarray, room_n: np.ndarray) -> Drawn:
        """Draws the demonstrations of examples. Of those that do not fit, the leftmost are dropped.

        Args:
          tasks_n: indices in `names`, in ascending order.
          passes_n: how often each example was drawn before.
          room_n: positions that each example leaves in a row.
        """
        base = hashed(hashed(self._keys[tasks_n], passes_n), examples_n)
        counts = np.searchsorted(self._bounds, _stream(base, 0), side="right")
        counts = np.minimum(counts, self._others[tasks_n])
        separators_n = (_stream(base, 1) % np.uint64(len(self._separator_lengths))).astype(np.uint8)
        drawn = Drawn(
            counts,
            np.full((len(base), self.most), NONE, np.int32),
            np.zeros(len(base), np.int64),
            separators_n,
        )
        some = np.flatnonzero(counts)
        base, tasks, counts = base[some], tasks_n[some], counts[some]
        records = self._record_numbers(tasks, examples_n[some])
        chosen = self._other_records(base, records, self._others[tasks], counts)
        lengths = np.zeros(chosen.shape, np.int64)
        separator_lengths = self._separator_lengths[separators_n[some]]
        for name, part in self._groups(tasks):
            rows, columns = np.nonzero(chosen[part] != NONE)
            rows += part.start
            examples = chosen[rows, columns]
            if (starts := self._store.record_starts(name, SPLIT)) is not None:  # choose one example of each record
                count = (starts[examples + 1] - starts[examples]).astype(np.uint64)
                noise = _stream(base[rows], 2 + self.most + columns)
                examples = chosen[rows, columns] = starts[examples] + (noise % count).astype(np.int64)
            lengths[rows, columns] = self._own_length(name, examples) + separator_lengths[rows]
        before = np.cumsum(lengths[:, ::-1], axis=1)[:, ::-1]  # positions from each demonstration to the example
        fits = before <= room_n[some, None]
        drawn.examples_nK[some] = np.where(fits, chosen, NONE)
        drawn.positions_n[some] = np.where(fits, lengths, 0).sum(axis=1)
        return drawn

    def draw_one(self, name: str, example: int, pass_: int) -> tuple[tuple[int, ...], int, int]:
        """Draws the demonstrations of one example of a pass over its task; see `draw`.

        Returns:
          Their numbers in the task, the number of their separator, and the positions that they take.
        """
        task_1, example_1, pass_1 = (np.array([n], np.int64) for n in (self.names.index(name), example, pass_))
        drawn = self.draw(task_1, example_1, pass_1, self._room(name, example_1))
        shown = tuple(number for number in drawn.examples_nK[0].tolist() if number != NONE)
        return shown, int(drawn.separators_n[0]), int(drawn.positions_n[0])

    def estimate(self, name: str) -> Estimate:
        """Estimates means of a task from `SAMPLE` of its examples in their first pass."""
        if name not in self._estimates:
            lengths, label_starts = self._store.lengths(name, SPLIT), self._store.label_starts(name, SPLIT)
            count = min(len(lengths), SAMPLE)
            examples = np.arange(count) * len(lengths) // count
            tasks = np.full(count, self.names.index(name))
            drawn = self.draw(tasks, examples, np.zeros(count, np.int64), self._room(name, examples))
            shown = drawn.examples_nK != NONE
            answers = lengths.astype(np.int64) - label_starts
            labels = answers[examples] + 1
            some = shown.any(axis=1)
            first = drawn.examples_nK[some, shown[some].argmax(axis=1)]  # the demonstration with the first label
            source = self._own_length(name, first) - answers[first]
            labels[some] = drawn.positions_n[some] - source + self._own_length(name, examples[some]) + 1
            means = drawn.counts_n.mean(), shown.sum() / count, drawn.positions_n.mean(), labels.mean()
            self._estimates[name] = Estimate(*map(float, means))
        return self._estimates[name]

    def dropped_share(self, rates: Mapping[str, float]) -> float:
        """Estimated share of the demonstrations drawn that rows have no space for. `rates`: of the tasks."""
        estimates = [(rate, self.estimate(name)) for name, rate in rates.items() if rate > 0]
        drawn, shown = (sum(rate * getattr(mean, kind) for rate, mean in estimates) for kind in ("drawn", "shown"))
        return 1 - shown / drawn if drawn else 0.0

    def check(self) -> None:
        """Refuses settings with which no example has demonstrations, or none can have K of them.

        Raises:
          UserError: no task has demonstrations, or K of mean length are longer than a row in every task.
        """
        means = [self._own_length(name, slice(None)).mean() for name, n in zip(self.names, self._others) if n]
        if not means:
            raise UserError("DEMONSTRATIONS: no task of the mixture has other examples to show; set it to None")
        shortest = min(means) + self._separator_lengths.min()
        if self.most * shortest > self.data.row_length:
            raise UserError(
                f"MAX_DEMONSTRATIONS is {self.most}: in every task that many demonstrations are longer than a row, "
                f"{self.most * shortest:,.0f} tokens or more on average; use at most "
                f"{int(self.data.row_length // shortest)}, or raise ROW_LENGTH, which is {self.data.row_length}"
            )

    def _room(self, name: str, examples: np.ndarray) -> np.ndarray:
        """Positions that examples of a task leave in a row."""
        return self.data.row_length - positions(self._store, self.data, name, examples)[0]

    def _record_numbers(self, tasks: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """Number in its task of the record of each example: int64 [m]."""
        records = examples.astype(np.int64)
        for name, part in self._groups(tasks):
            if (starts := self._store.record_starts(name, SPLIT)) is not None:
                records[part] = np.searchsorted(starts, records[part], side="right") - 1
        return records

    def _other_records(
        self, base: np.ndarray, records: np.ndarray, others: np.ndarray, counts: np.ndarray
    ) -> np.ndarray:
        """Draws `counts` of the numbers 0..others, all different and none of them that of `records`: int64 [m, K]."""
        chosen = np.full((len(base), self.most), NONE, np.int64)
        excluded = records[:, None]  # in ascending order
        for number in range(min(self.most, counts.max(initial=0))):
            rows = np.flatnonzero(counts > number)
            left = (others[rows] - number).astype(np.uint64)
            record = (_stream(base[rows], 2 + number) % left).astype(np.int64)
            for column in range(number + 1):
                record += record >= excluded[rows, column]
            chosen[rows, number] = record
            with_record = np.full((len(base), 1), np.iinfo(np.int64).max)
            with_record[rows, 0] = record
            excluded = np.sort(np.concatenate([excluded, with_record], axis=1), axis=1)
        return chosen

    def _own_length(self, name: str, examples: np.ndarray | slice) -> np.ndarray:
        """Tokens of examples without the instructions of their task: int64."""
        lengths = self._store.lengths(name, SPLIT)[examples].astype(np.int64)
        starts = self._store.input_starts(name, SPLIT)
        return lengths if starts is None else lengths - starts[examples]

    def _groups(self, tasks: np.ndarray) -> Iterator[tuple[str, slice]]:
        """Names of the tasks in an ascending array, and where each occurs."""
        edges = np.flatnonzero(np.diff(tasks, prepend=-1)).tolist()
        for start, stop in zip(edges, [*edges[1:], len(tasks)]):
            yield self.names[tasks[start]], slice(start, stop)


def _stream(base: np.ndarray, number: int | np.ndarray) -> np.ndarray:
    """Element `number` of the stream of hashes of each example."""
    return hashed(base, np.broadcast_to(np.asarray(number), base.shape))


def _has_demonstrations(store: Store, name: str) -> bool:
    """Whether the examples of a task are questions with one answer, rather than documents or conversations."""
    if store.chunk_flags(name, SPLIT) is not None or store.earlier_labels(name, SPLIT) is not None:
        return False
    return bool(store.label_starts(name, SPLIT).any())


def _records(store: Store, name: str) -> int:
    starts = store.record_starts(name, SPLIT)
    return len(store.lengths(name, SPLIT)) if starts is None else len(starts) - 1

"""Reviews: decisions on pairs of a training and an evaluation task that might leak into each other (paper 2.3).

A review is a table filled in by people: `train`, `evaluation`, the measured overlap (`tools/find_overlap.py`),
`decision` ("keep", "drop_train", "drop_evaluation"; empty: undecided), `reason`, `reviewer`. The project's own,
`catalog/review.tsv`, contains the pairs with a common data source; the paper's mixtures apply it.
"""

import csv
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from optiml_jax.common.errors import DataError
from optiml_jax.common.files import write_atomically
from tasks.catalog.registry import CATALOG

PATH = CATALOG.with_name("review.tsv")
KEEP, DROP_TRAIN, DROP_EVALUATION = "keep", "drop_train", "drop_evaluation"
DECISIONS = ("", KEEP, DROP_TRAIN, DROP_EVALUATION)


@dataclass(frozen=True)
class TaskPair:
    """A line of a review.

    Attributes:
      overlap: fraction of the evaluation task's examples that share a 13-gram with the training task, as text; empty:
        not measured. `own`: without 13-grams that most of the task's examples have.
    """

    train: str
    evaluation: str
    overlap: str = ""
    own: str = ""
    decision: str = ""
    reason: str = ""
    reviewer: str = ""


COLUMNS = tuple(field.name for field in fields(TaskPair))


@functools.cache
def read(path: str | os.PathLike = PATH) -> tuple[TaskPair, ...]:
    """Reads the pairs of a review.

    Raises:
      DataError: names file and line: wrong columns, an unknown decision, or one without its reason.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    header, *rows = csv.reader(lines or [""], delimiter="\t", quoting=csv.QUOTE_NONE)
    if tuple(header) != COLUMNS:
        raise DataError(f"{path}:1: the columns are {', '.join(header)}, not {', '.join(COLUMNS)}")
    pairs: dict[tuple[str, str], TaskPair] = {}
    for number, row in enumerate(rows, start=2):
        if len(row) != len(COLUMNS):
            raise DataError(f"{path}:{number}: {len(row)} columns, not {len(COLUMNS)}")
        pair = TaskPair(*row)
        if pair.decision not in DECISIONS:
            choices = ", ".join(DECISIONS[1:])
            raise DataError(f'{path}:{number}: decision "{pair.decision}"; use one of {choices}, or nothing')
        if pair.decision and not pair.reason:
            raise DataError(f"{path}:{number}: {pair.decision} without a reason")
        if (pair.train, pair.evaluation) in pairs:
            raise DataError(f"{path}:{number}: {pair.train} and {pair.evaluation} were already decided")
        pairs[pair.train, pair.evaluation] = pair
    return tuple(pairs.values())


def write(path: str | os.PathLike, pairs: Iterable[TaskPair]) -> None:
    """Writes a review in the format of `read`."""
    rows = ("\t".join(asdict(pair).values()) for pair in pairs)
    write_atomically(path, "\n".join(["\t".join(COLUMNS), *rows]) + "\n")


def merged(measured: Sequence[TaskPair], decided: Iterable[TaskPair]) -> list[TaskPair]:
    """Combines new measurements with earlier decisions; decisions on pairs without a new measurement are preserved."""
    earlier = {(pair.train, pair.evaluation): pair for pair in decided}
    pairs = []
    for pair in measured:
        before = earlier.pop((pair.train, pair.evaluation), pair)
        pairs.append(TaskPair(*list(asdict(pair).values())[:4], before.decision, before.reason, before.reviewer))
    return [*pairs, *(pair for pair in earlier.values() if pair.decision)]


def trained_as(evaluated: Iterable[str], path: str | os.PathLike | None) -> dict[str, list[str]]:
    """Evaluated task -> training tasks that were judged to hold its data (`DROP_TRAIN`), for those that have one.

    Args:
      path: of the user's review, in addition to the project's; None: there is none.
    """
    names = set(evaluated)
    pairs: dict[str, list[str]] = {}
    for pair in (*read(PATH), *(read(path) if path else ())):
        if pair.decision == DROP_TRAIN and pair.evaluation in names:
            pairs.setdefault(pair.evaluation, []).append(pair.train)
    return pairs


@functools.cache
def dropped(path: str | os.PathLike, decision: str) -> Mapping[str, str]:
    """Dropped tasks with the reason: training tasks for `DROP_TRAIN`, evaluation tasks for `DROP_EVALUATION`."""
    side = {DROP_TRAIN: "train", DROP_EVALUATION: "evaluation"}[decision]
    other = {"train": "evaluation", "evaluation": "train"}[side]
    reasons: dict[str, str] = {}
    for pair in read(path):
        if pair.decision == decision:
            reasons.setdefault(getattr(pair, side), f"{pair.reason} ({getattr(pair, other)})")
    return reasons

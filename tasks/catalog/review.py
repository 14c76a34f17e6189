"""What was decided on pairs of a train and an evaluation task that might leak into each other (paper 2.3).

A review is a table that people fill in: `train`, `evaluation`, what was measured (`tools/find_overlap.py`), and
`decision` ("keep", "drop_train", "drop_evaluation"; empty: nobody has looked), `reason`, `reviewer`. The project's own,
`catalog/review.tsv`, holds the pairs of one data source; the mixtures of the paper apply it.
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
class Pair:
    """One line of a review.

    Attributes:
      overlap: fraction of the evaluation task's examples that share a 13-gram with the train task, as text; empty: not
        measured. `own`: without those that most of its examples have.
    """

    train: str
    evaluation: str
    overlap: str = ""
    own: str = ""
    decision: str = ""
    reason: str = ""
    reviewer: str = ""


COLUMNS = tuple(field.name for field in fields(Pair))


@functools.cache
def read(path: str | os.PathLike = PATH) -> tuple[Pair, ...]:
    """The pairs of a review.

    Raises:
      DataError: names file and line: other columns, an unknown decision, or one without its reason.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    header, *rows = csv.reader(lines or [""], delimiter="\t", quoting=csv.QUOTE_NONE)
    if tuple(header) != COLUMNS:
        raise DataError(f"{path}:1: the columns are {', '.join(header)}, not {', '.join(COLUMNS)}")
    pairs: dict[tuple[str, str], Pair] = {}
    for number, row in enumerate(rows, start=2):
        if len(row) != len(COLUMNS):
            raise DataError(f"{path}:{number}: {len(row)} columns, not {len(COLUMNS)}")
        pair = Pair(*row)
        if pair.decision not in DECISIONS:
            known = ", ".join(DECISIONS[1:])
            raise DataError(f'{path}:{number}: decision "{pair.decision}"; use one of {known}, or nothing')
        if pair.decision and not pair.reason:
            raise DataError(f"{path}:{number}: {pair.decision} without a reason")
        if (pair.train, pair.evaluation) in pairs:
            raise DataError(f"{path}:{number}: {pair.train} and {pair.evaluation} were decided on already")
        pairs[pair.train, pair.evaluation] = pair
    return tuple(pairs.values())


def write(path: str | os.PathLike, pairs: Iterable[Pair]) -> None:
    """A review, as `read` takes it."""
    rows = ("\t".join(asdict(pair).values()) for pair in pairs)
    write_atomically(path, "\n".join(["\t".join(COLUMNS), *rows]) + "\n")


def merged(measured: Sequence[Pair], decided: Iterable[Pair]) -> list[Pair]:
    """What was measured now with what was decided before; decisions on pairs that are no longer there stay."""
    known = {(pair.train, pair.evaluation): pair for pair in decided}
    found = []
    for pair in measured:
        before = known.pop((pair.train, pair.evaluation), pair)
        found.append(Pair(*list(asdict(pair).values())[:4], before.decision, before.reason, before.reviewer))
    return [*found, *(pair for pair in known.values() if pair.decision)]


@functools.cache
def dropped(path: str | os.PathLike, decision: str) -> Mapping[str, str]:
    """Task -> why, of those that a review drops: train tasks by `DROP_TRAIN`, others by `DROP_EVALUATION`."""
    side = {DROP_TRAIN: "train", DROP_EVALUATION: "evaluation"}[decision]
    other = {"train": "evaluation", "evaluation": "train"}[side]
    found: dict[str, str] = {}
    for pair in read(path):
        if pair.decision == decision:
            found.setdefault(getattr(pair, side), f"{pair.reason} ({getattr(pair, other)})")
    return found

"""Mixtures: which tasks are trained on together, and how often each is drawn (paper 2.3 and 4.2).

Within a benchmark, a task is drawn in proportion to min(examples, EPS); benchmarks share the draws in stated
proportions. `seqio_tasks.py` registers the same mixtures with the same rates, nested one level deep.

`opt_iml`, the paper's own (section 5), combines three choices of section 4, and the paper does not say how they add up.
Here, the instruction benchmarks are 100 parts in the proportions of 4.3 (CrossFit 4, ExMix 2, FLAN 20,
Super-NaturalInstructions 25, PromptSource 45, T5 2, UnifiedSKG 2); one of Super-NaturalInstructions' parts goes to the
reasoning sets, as in 4.6; and pre-training text is 5% of everything (4.5), so that one part is 0.95% of the draws. The
paper's 5% is "of updates" (Figure 4), for which the gin files of its runs set `TOKEN_SHARES`.
`opt_iml_max` also trains on what the other holds out (section 6: "all 1,991 tasks").

A name such as `opt_iml+dialogue` adds a benchmark to a mixture: its share of the draws is that of `ADDED`, or else
`ADDED_SHARE`, and the others keep their proportions to each other (paper 4.7).

`opt_iml` draws every task that the paper does not evaluate, whatever its benchmark uses it for: the natural shares of
4.3 (71% Super-NaturalInstructions), and Figure 8, come out only with the tasks that Super-NaturalInstructions' authors
excluded (docs/benchmark.md). Of a test task that is drawn, the instances that its authors evaluate are left out.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from optiml_jax.common.errors import UserError, check_known
from optiml_jax.data.manifest import EPS, SEPARATOR
from optiml_jax.data.specification import LEAVE_OUT, REFUSE, CacheOptions
from optiml_jax.evaluation.prompts.ledger import LEVELS
from tasks.catalog import review
from tasks.catalog.registry import (
    CATALOG,
    Benchmark,
    CatalogRow,
    MissingError,
    benchmark_names,
    catalog,
    discover,
    listed,
)
from tasks.example import Skipped
from tasks.task import Task

REMEDY = (
    f"; see docs/benchmark.md for where to get them, or leave them out: --missing_benchmarks={LEAVE_OUT} "
    f"(in gin MISSING_BENCHMARKS = '{LEAVE_OUT}')"
)


class Exclusion(NamedTuple):
    """Why a mixture does not draw a task. `kind`: one of `EXCLUSIONS`."""

    kind: str
    reason: str


EXCLUSIONS = ("held-out category", "evaluated", "shared data", "other split")


@dataclass(frozen=True)
class Mixture:
    """Training tasks of one or more benchmarks.

    Attributes:
      proportions: benchmark -> share of the draws. None for one benchmark, or for one cap over all tasks.
      splits: the official splits whose tasks are drawn.
      holds_out: whether it leaves out what the paper evaluates on, even if the benchmark trains on it: the categories
        of `held_out_categories`, evaluated tasks, and tasks that the review drops (`catalog/review.tsv`, paper 2.3).
    """

    name: str
    benchmarks: tuple[str, ...]
    proportions: Mapping[str, float] | None = None
    eps: int = EPS
    splits: tuple[str, ...] = ("train",)
    holds_out: bool = False

    def discover(self, data_dir: str | os.PathLike | None, options: CacheOptions) -> Benchmark:
        """Discovers everything in the folders of its benchmarks; see `discover_all` for the errors."""
        discovered = discover_all(self.benchmarks, data_dir, options)
        if self.proportions and options.missing_benchmarks == REFUSE:
            available = {task.benchmark for task in self.tasks(discovered)}
            if missing := [name for name in self.benchmarks if name not in available]:
                raise MissingError(f"DATA_DIR: {data_dir} has no task of {', '.join(missing)} to train on{REMEDY}")
        return discovered

    def tasks(self, discovered: Benchmark) -> list[Task]:
        """The tasks in `discovered` that are drawn; a task without a train split can only be evaluated."""
        members = [task for task in discovered.tasks.values() if task.benchmark in self.benchmarks]
        return [task for task in members if self._exclusion(task, discovered) is None]

    def not_drawn(self, discovered: Benchmark) -> list[Skipped]:
        """The tasks of its splits that are not drawn, each with the reason."""
        reasons = {task.name: self._exclusion(task, discovered) for task in discovered.listed(*self.splits)}
        return [Skipped(name, reason) for name, reason in reasons.items() if reason is not None]

    def coverage(self, discovered: Benchmark) -> dict[str, dict[str, list[int]]]:
        """`Benchmark.coverage`, whose train tasks are those that this mixture draws."""
        coverage = {
            name: {role: counts for role, counts in roles.items() if role not in self.splits}
            for name, roles in discovered.coverage.items()
        }
        available = {task.name for task in self.tasks(discovered)}
        for row in discovered.rows.values():
            if self.exclusion(row) is None:
                counts = coverage.setdefault(row.benchmark, {}).setdefault("train", [0, 0])
                counts[0] += row.name in available
                counts[1] += 1
        return {name: roles for name, roles in coverage.items() if roles}

    def listed(self) -> list[CatalogRow]:
        """The catalog's tasks that are drawn when all data are there."""
        rows = [row for benchmark in self.benchmarks for row in catalog(benchmark).values()]
        return [row for row in rows if self.exclusion(row) is None]

    def _exclusion(self, task: Task, discovered: Benchmark) -> str | None:
        """Why a task that has data is not drawn, or None."""
        if exclusion := self.exclusion(discovered.rows[task.name], task.options.review):
            return exclusion.reason
        return None if "train" in task.splits else f"only {', '.join(task.splits)}"

    def exclusion(self, row: CatalogRow, own_review: str | None = None) -> Exclusion | None:
        """Why a task of the catalog is not drawn; None if it is.

        Args:
          own_review: a user's review, in addition to the project's.
        """
        if row.split not in self.splits:
            return Exclusion("other split", f"its split is {row.split}")
        if self.holds_out and row.category in held_out_categories():
            reason = f"its category {row.category} is held out (paper 2.3, Table 15)"
            return Exclusion("held-out category", reason)
        if self.holds_out and row.level in HELD_OUT:
            return Exclusion("evaluated", "it is evaluated as a new task (column level of the catalog)")
        for path in filter(None, (review.PATH if self.holds_out else None, own_review)):
            if reason := review.dropped(path, review.DROP_TRAIN).get(row.name):
                reason = f"dropped by {'the project' if path == review.PATH else path}: {reason}"
                return Exclusion("shared data", reason)
        return None


@functools.cache
def held_out_categories() -> frozenset[str]:
    """The categories that the paper never trains on (Table 15, 5.2 to 5.4): those of fully held-out tasks."""
    return frozenset(row["category"] for row in listed(CATALOG) if row["level"] == LEVELS[0])


def discover_all(names: tuple[str, ...], data_dir: str | os.PathLike | None, options: CacheOptions) -> Benchmark:
    """Discovers several benchmarks; missing ones may be left out, with the reason in `left_out`.

    Raises:
      MissingError: some are missing and may not be left out, or all are missing.
      UserError, DataError: see `registry.discover`.
    """
    discovered, missing = [], {}
    for name in names:
        try:
            discovered.append(discover(name, data_dir, options))
        except MissingError as error:
            missing[name] = str(error)
            discovered.append(Benchmark({}, (Skipped(name, str(error)),), catalog(name), (name,)))
    if missing and (options.missing_benchmarks == REFUSE or len(missing) == len(names)):
        if len(names) == 1:
            raise MissingError(missing[names[0]])
        first, *others = missing
        more = f"; nor those of {', '.join(others)}" if others else ""
        raise MissingError(f"the data of {first} are not there ({missing[first]}){more}{REMEDY}")
    return merge(discovered)


def merge(discovered: Iterable[Benchmark]) -> Benchmark:
    """Merges several benchmarks into one."""
    discovered = list(discovered)
    tasks = {name: task for benchmark in discovered for name, task in benchmark.tasks.items()}
    rows = {name: row for benchmark in discovered for name, row in benchmark.rows.items()}
    left_out = tuple(skipped for benchmark in discovered for skipped in benchmark.left_out)
    missing = tuple(name for benchmark in discovered for name in benchmark.missing)
    return Benchmark(
        tasks, left_out, rows, missing, tuple(text for benchmark in discovered for text in benchmark.notes)
    )


PARTS = {  # of 100 parts of instructions: paper 4.3 (Table 5), one of them for reasoning as in 4.6
    "crossfit": 4,
    "exmix": 2,
    "flan": 20,
    "super_natural_instructions": 25 - 1,
    "promptsource": 45,
    "t5": 2,
    "unifiedskg": 2,
    "reasoning": 1,
}
PRETRAIN = 5  # % of all draws (paper 4.5)
PROPORTIONS = {name: parts * (100 - PRETRAIN) / 100 for name, parts in PARTS.items()} | {"pretrain_text": PRETRAIN}
ADDED = {"dialogue": 0.5}  # % of all draws of a benchmark that is added to a mixture (paper 4.7, Table 7)
ADDED_SHARE = 1.0  # of any other
EVERYTHING = ("train", "test", "test_xlingual", "excluded")
HELD_OUT = LEVELS[:2]  # levels of tasks that are never trained on

# the paper's; in addition, each benchmark is a mixture of its own name
MIXTURES = {
    mixture.name: mixture
    for mixture in (
        Mixture("opt_iml", tuple(PROPORTIONS), PROPORTIONS, splits=EVERYTHING, holds_out=True),
        Mixture("opt_iml_max", tuple(PROPORTIONS), PROPORTIONS, splits=EVERYTHING),
    )
}


def names() -> list[str]:
    """Names of all mixtures: the paper's, and each benchmark with training tasks."""
    without_training = {
        name for name in benchmark_names() if (rows := catalog(name).values()) and _only_evaluated(rows)
    }
    return sorted({*benchmark_names(), *MIXTURES} - without_training)


def _only_evaluated(rows: Iterable[CatalogRow]) -> bool:
    return all(row.split == "test" for row in rows)


def mixture(name: str) -> Mixture:
    """Returns the mixture of that name; "a+b" is a mixture of several benchmarks, with one cap over all tasks.

    Of "opt_iml+b", the tasks are drawn that `opt_iml` would draw from b if it were one of its benchmarks.

    Raises:
      UserError: there is none (the message suggests the nearest), or two parts have the same benchmark.
    """
    base, *added = name.split(SEPARATOR)
    for part in (base, *added):
        check_known("mixture" if part == name else "benchmark", part, names())
    mixed = MIXTURES.get(base) or Mixture(base, (base,))
    benchmarks = mixed.benchmarks
    for part in added:
        if part in MIXTURES:
            raise UserError(f"mixture {name}: {part} must be its first part")
        if part in benchmarks:
            raise UserError(f"mixture {name}: {part} is twice in it; remove it")
        benchmarks += (part,)
    if mixed.proportions is None or not added:
        return dataclasses.replace(mixed, name=name, benchmarks=benchmarks)
    shares = {part: ADDED.get(part, ADDED_SHARE) / 100 for part in added}
    rest = (1 - math.fsum(shares.values())) / math.fsum(mixed.proportions.values())
    proportions = {part: share * rest for part, share in mixed.proportions.items()} | shares
    return dataclasses.replace(mixed, name=name, benchmarks=benchmarks, proportions=proportions)

"""Which tasks are trained on together, and how often each is drawn (paper 2.3 and 4.2).

Within a benchmark a task is drawn in proportion to min(examples, EPS); benchmarks share the draws as
stated. `seqio_tasks.py` registers the same mixtures with the same rates, nested one level deep.

`opt_iml`, the paper's own (section 5), takes three choices of section 4 together, and the paper does not say how they
add up. Here: the instruction benchmarks are 100 parts in the proportions of 4.3 (CrossFit 4, ExMix 2, FLAN 20,
Super-NaturalInstructions 25, PromptSource 45, T5 2, UnifiedSKG 2); one of Super-NaturalInstructions' parts goes to the
reasoning sets, from which 4.6 took its share too; and pre-training text is 5% of everything (4.5), so that a part is
0.95% of the draws. `opt_iml_max` also trains on what the others hold out (section 6: all 1,991 tasks).
"""

import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from optiml_jax.common.errors import check_known
from optiml_jax.data.manifest import EPS
from optiml_jax.data.settings import LEAVE_OUT, REFUSE
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
from tasks.task import Options, Task

WAY_OUT = (
    f"; docs/benchmark.md says where to get them, or leave them out: --missing_benchmarks={LEAVE_OUT} "
    f"(in gin MISSING_BENCHMARKS = '{LEAVE_OUT}')"
)


@dataclass(frozen=True)
class Mixture:
    """Tasks of some benchmarks to learn from.

    Attributes:
      proportions: benchmark -> its share of the draws. None for one benchmark, or to cap over all tasks alike.
      splits: the official lists whose tasks are drawn from; OPT-IML-Max trains on those of the evaluation too.
      holds_out: whether it leaves out what the paper evaluates on, though a benchmark's own list trains on it: the
        categories of `held_out_categories`, and the tasks that the review drops (`catalog/review.tsv`, paper 2.3).
    """

    name: str
    benchmarks: tuple[str, ...]
    proportions: Mapping[str, float] | None = None
    eps: int = EPS
    splits: tuple[str, ...] = ("train",)
    holds_out: bool = False

    def discover(self, data_dir: str | os.PathLike | None, options: Options) -> Benchmark:
        """Everything in the folders of its benchmarks; see `discover_all` for the errors."""
        found = discover_all(self.benchmarks, data_dir, options)
        if self.proportions and options.missing_benchmarks == REFUSE:
            there = {task.benchmark for task in self.tasks(found)}
            if idle := [name for name in self.benchmarks if name not in there]:
                raise MissingError(f"DATA_DIR: {data_dir} has no task of {', '.join(idle)} to train on{WAY_OUT}")
        return found

    def tasks(self, found: Benchmark) -> list[Task]:
        """The tasks of `found` that are drawn from: what has no train split can only be evaluated."""
        listed = [task for task in found.listed(*self.splits) if self._why_not(task, found) is None]
        return [task for task in listed if task.benchmark in self.benchmarks]

    def not_drawn(self, found: Benchmark) -> list[Skipped]:
        """The tasks of its lists that are not drawn from, each with the reason."""
        reasons = {task.name: self._why_not(task, found) for task in found.listed(*self.splits)}
        return [Skipped(name, reason) for name, reason in reasons.items() if reason is not None]

    def _why_not(self, task: Task, found: Benchmark) -> str | None:
        if reason := self.dropped(found.rows[task.name], task.options.review):
            return reason
        return None if "train" in task.splits else f"only {', '.join(task.splits)}"

    def dropped(self, row: CatalogRow, own_review: str | None = None) -> str | None:
        """Why a task of its lists is left out on purpose; None: it is not.

        Args:
          own_review: the user's, beside the project's.
        """
        if self.holds_out and row.category in held_out_categories():
            return f"its category {row.category} is held out (paper 2.3, Table 15)"
        for path in filter(None, (review.PATH if self.holds_out else None, own_review)):
            if reason := review.dropped(path, review.DROP_TRAIN).get(row.name):
                return f"dropped by {'the project' if path == review.PATH else path}: {reason}"
        return None


@functools.cache
def held_out_categories() -> frozenset[str]:
    """The categories that the paper trains on nowhere (Table 15, 5.2 to 5.4): those of what is fully held out."""
    return frozenset(row["category"] for row in listed(CATALOG) if row["level"] == LEVELS[0])


def discover_all(names: tuple[str, ...], data_dir: str | os.PathLike | None, options: Options) -> Benchmark:
    """Several benchmarks as one; a missing one may be left out, with its reason in `left_out`.

    Raises:
      MissingError: some are missing and are not to be left out, or all are.
      UserError, DataError: see `registry.discover`.
    """
    found, missing = [], {}
    for name in names:
        try:
            found.append(discover(name, data_dir, options))
        except MissingError as error:
            missing[name] = str(error)
            found.append(Benchmark({}, (Skipped(name, str(error)),), catalog(name)))
    if missing and (options.missing_benchmarks == REFUSE or len(missing) == len(names)):
        if len(names) == 1:
            raise MissingError(missing[names[0]])
        first, *others = missing
        more = f"; nor those of {', '.join(others)}" if others else ""
        raise MissingError(f"the data of {first} are not there ({missing[first]}){more}{WAY_OUT}")
    return together(found)


def together(found: Iterable[Benchmark]) -> Benchmark:
    """Several benchmarks as one."""
    found = list(found)
    tasks = {name: task for benchmark in found for name, task in benchmark.tasks.items()}
    rows = {name: row for benchmark in found for name, row in benchmark.rows.items()}
    return Benchmark(tasks, tuple(skipped for benchmark in found for skipped in benchmark.left_out), rows)


PARTS = {  # of 100 of the instructions: paper 4.3 (Table 5), one for reasoning as in 4.6
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
EVERYTHING = ("train", "test", "test_xlingual", "excluded")

# those of the paper; each benchmark alone is a mixture of its name
MIXTURES = {
    mixture.name: mixture
    for mixture in (
        Mixture("opt_iml", tuple(PROPORTIONS), PROPORTIONS, holds_out=True),
        Mixture("opt_iml_max", tuple(PROPORTIONS), PROPORTIONS, splits=EVERYTHING),
    )
}


def names() -> list[str]:
    """Every mixture there is: those of the paper, and each benchmark that has something to train on."""
    asked_only = {name for name in benchmark_names() if (rows := catalog(name).values()) and _only_asked(rows)}
    return sorted({*benchmark_names(), *MIXTURES} - asked_only)


def _only_asked(rows: Iterable[CatalogRow]) -> bool:
    return all(row.split == "test" for row in rows)


def mixture(name: str) -> Mixture:
    """The mixture of that name; "a+b" is one of several benchmarks, capped over all tasks alike.

    Raises:
      UserError: there is none; names the nearest.
    """
    if "+" in name:
        parts = tuple(name.split("+"))
        for part in parts:
            check_known("benchmark", part, benchmark_names())
        return Mixture(name, parts)
    check_known("mixture", name, names())
    return MIXTURES.get(name) or Mixture(name, (name,))

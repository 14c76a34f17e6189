"""Evaluation suites: which tasks, prompted how, with how many demonstrations, and at which level of generalization.

Every suite is a module of this package that defines `SUITE`; `ledger_job.py` writes its prompt ledger, which holds
texts and no tokens, so that one ledger serves every model.
"""

import dataclasses
import functools
import importlib
import os
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from optiml_jax.common.errors import DataError, check_known
from optiml_jax.data.specification import CacheOptions
from optiml_jax.evaluation.metrics import Metric
from tasks.catalog import review
from tasks.catalog.mixtures import discover_all
from tasks.catalog.registry import Benchmark
from tasks.task import Task

# Categories of their own in the paper's tables, to which training on others belongs (paper 2.3, Table 15, footnote 3).
RELATED = {"mmlu": ("question_answering",)}


@dataclass(frozen=True)
class Part:
    """A task in a suite.

    split: the evaluated split of the task; if several, the first that it has.
    level: what it shows (paper 2.3): "fully_held_out" (a new category), "held_out_task" (a new task of a known
      category), "held_out_instances" (new examples of a training task); None: none of these.
    metric, output_type: None: those of each template.
    templates: ids; None: all of the task's.
    shots: numbers of demonstrations, with a prompt for each.
    seeds: of the demonstrations; 0-shot prompts occur once.
    separator: after each demonstration; None: the job's.
    group: what it is a part of, such as MMLU (`optiml_jax.evaluation.prompts.ledger.Prompt`).
    most: prompts per number of shots and seed; 0: all; None: the job's number.
    pooled: whether the score of the task is the mean over its prompts of all templates (paper 4.1).
    """

    task: Task
    split: str | tuple[str, ...]
    level: str | None
    metric: Metric | None = None
    output_type: str | None = None
    templates: tuple[str, ...] | None = None
    shots: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (0,)
    separator: str | None = None
    group: str | None = None
    most: int | None = None
    pooled: bool = False


@dataclass(frozen=True)
class Suite:
    """A suite. `parts` returns its parts, given the benchmarks that have data."""

    name: str
    benchmarks: tuple[str, ...]
    parts: Callable[[Benchmark], Iterable[Part]]

    def available(self, discovered: Benchmark) -> list[Part]:
        """The parts that have data, each with the one split to evaluate.

        Raises:
          DataError: a task has two levels.
        """
        parts, levels = [], dict[str, str | None]()
        for part in self.parts(discovered):
            if part.task.name in dropped(part.task.options):
                continue
            splits = (part.split,) if isinstance(part.split, str) else part.split
            if split := first_split(part.task, splits):
                parts.append(dataclasses.replace(part, split=split))
                if levels.setdefault(part.task.name, part.level) != part.level:
                    both = f"{levels[part.task.name]} and {part.level}"
                    raise DataError(f"suite {self.name}: {part.task.name} has two levels, {both}")
        return parts

    def discover(self, data_dir: str | os.PathLike | None, options: CacheOptions) -> Benchmark:
        """Discovers everything in the folders of its benchmarks; see `registry.discover` for the errors."""
        return discover_all(self.benchmarks, data_dir, options)


def first_split(task: Task, splits: Iterable[str]) -> str | None:
    """The first of these splits that a task has; None if it has none."""
    return next((split for split in splits if split in task.splits), None)


def dropped(options: CacheOptions) -> Mapping[str, str]:
    """Tasks that the user's review removes from evaluations, with the reason."""
    return review.dropped(options.review, review.DROP_EVALUATION) if options.review else {}


def level_of(task: Task, discovered: Benchmark) -> str:
    """The level of a task for a model trained on all train tasks of the same benchmark's lists, with or without data.
    For a model trained on `opt_iml` the catalog states it (`stated`), because other benchmarks have its category too.
    """
    seen = any(row.split == "train" and row.category == task.category for row in discovered.rows.values())
    return "held_out_task" if seen else "fully_held_out"


def stated(task: Task, discovered: Benchmark) -> str | None:
    """The level of a task for OPT-IML (paper 2.3, 5, Table 15), stated in the catalog with its reason; None: no
    level."""
    return discovered.rows[task.name].level or None


def by_official_lists(discovered: Benchmark, shots: tuple[int, ...] = (0,)) -> Iterator[Part]:
    """Test tasks at the level of their category, and the held-out instances of train tasks.

    Args:
      shots: of the test tasks.
    """
    for name, task in discovered.tasks.items():
        split = discovered.rows[name].split
        if split == "test":
            evaluated = "test" if "test" in task.splits else "validation"
            yield Part(task, evaluated, level_of(task, discovered), shots=shots)
        elif split == "train" and "validation" in task.splits:
            yield Part(task, "validation", "held_out_instances")


def named(discovered: Benchmark, benchmark: str, *names: str) -> Iterator[Task]:
    """The tasks with these names (without the benchmark's) that have data."""
    tasks = (discovered.tasks.get(f"{benchmark}.{name}") for name in names)
    yield from (task for task in tasks if task)


@functools.cache
def _suite_of(name: str) -> Suite | None:
    return getattr(importlib.import_module(f"{__name__}.{name}"), "SUITE", None)


def names() -> list[str]:
    """Names of all suites."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if _suite_of(module.name))


def suite(name: str) -> Suite:
    """Returns the suite of that name.

    Raises:
      UserError: there is none; the message suggests the nearest.
    """
    check_known("suite", name, names())
    return _suite_of(name)

"""Evaluation suites: which tasks, prompted how, with how many demonstrations, and at which level of generalization.

Every suite is a module of this package that defines `SUITE`; `ledger_job.py` writes its prompt ledger, which holds texts
and no tokens, so that one ledger serves every model.
"""

import dataclasses
import functools
import importlib
import os
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from optiml_jax.common.errors import DataError, check_known
from optiml_jax.evaluation.metrics import Metric
from tasks.catalog import review
from tasks.catalog.mixtures import discover_all
from tasks.catalog.registry import Benchmark
from tasks.task import Options, Task


@dataclass(frozen=True)
class Part:
    """One task in a suite.

    Attributes:
      split: of the task, that is asked; several: the first that it has.
      level: what it shows (paper 2.3): "fully_held_out" (a new category), "held_out_task" (a new task of a known
        category), "held_out_instances" (new examples of a task that was trained on); None: none of these.
      metric: None: that of each template. Ranked answers are generated where it is another one's than accuracy.
      templates: ids; None: all of the task's.
      shots: numbers of demonstrations, each a prompt of its own.
      seeds: of the demonstrations; 0-shot prompts come once.
      separator: after each demonstration; None: as the job is asked.
      group: what it is a part of, as MMLU's subjects are (`optiml_jax.evaluation.prompts.ledger.Prompt`).
      most: prompts at each number of shots and seed; 0: all; None: as many as the job is asked for.
    """

    task: Task
    split: str | tuple[str, ...]
    level: str | None
    metric: Metric | None = None
    templates: tuple[str, ...] | None = None
    shots: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (0,)
    separator: str | None = None
    group: str | None = None
    most: int | None = None


@dataclass(frozen=True)
class Suite:
    """A suite: `parts` says what is asked, given what is there of its benchmarks."""

    name: str
    benchmarks: tuple[str, ...]
    parts: Callable[[Benchmark], Iterable[Part]]

    def asked(self, found: Benchmark) -> list[Part]:
        """The parts that are there, each with the one split that is asked.

        Raises:
          DataError: one task stands at two levels.
        """
        parts, levels = [], dict[str, str | None]()
        for part in self.parts(found):
            if part.task.name in dropped(part.task.options):
                continue
            splits = (part.split,) if isinstance(part.split, str) else part.split
            if split := next((split for split in splits if split in part.task.splits), None):
                parts.append(dataclasses.replace(part, split=split))
                if levels.setdefault(part.task.name, part.level) != part.level:
                    both = f"{levels[part.task.name]} and {part.level}"
                    raise DataError(f"suite {self.name}: {part.task.name} is asked at two levels, {both}")
        return parts

    def discover(self, data_dir: str | os.PathLike | None, options: Options) -> Benchmark:
        """Everything in the folders of its benchmarks; see `registry.discover` for the errors."""
        return discover_all(self.benchmarks, data_dir, options)


def dropped(options: Options) -> Mapping[str, str]:
    """Task -> why, of those that the user's review takes out of evaluations."""
    return review.dropped(options.review, review.DROP_EVALUATION) if options.review else {}


def level_of(task: Task, found: Benchmark) -> str:
    """The level of a task for a model trained on all train tasks of the same benchmark's lists, whichever of their
    files are here. For a model trained on `opt_iml` the catalog says it (`stated`): other benchmarks have its category.
    """
    known = any(row.split == "train" and row.category == task.category for row in found.rows.values())
    return "held_out_task" if known else "fully_held_out"


def stated(task: Task, found: Benchmark) -> str | None:
    """The level of a task for OPT-IML (paper 2.3, 5, Table 15), whose reason is in the catalog; None: none of them."""
    return found.rows[task.name].level or None


def by_official_lists(found: Benchmark, shots: tuple[int, ...] = (0,)) -> Iterator[Part]:
    """Test tasks at the level that their category gives them, and the held-out instances of train tasks.

    Args:
      shots: of the test tasks.
    """
    for name, task in found.tasks.items():
        split = found.rows[name].split
        if split == "test":
            asked = "test" if "test" in task.splits else "validation"
            yield Part(task, asked, level_of(task, found), shots=shots)
        elif split == "train" and "validation" in task.splits:
            yield Part(task, "validation", "held_out_instances")


def named(found: Benchmark, benchmark: str, *names: str) -> Iterator[Task]:
    """The tasks of these names, without the benchmark's, that are there."""
    tasks = (found.tasks.get(f"{benchmark}.{name}") for name in names)
    yield from (task for task in tasks if task)


@functools.cache
def _known(name: str) -> Suite | None:
    return getattr(importlib.import_module(f"{__name__}.{name}"), "SUITE", None)


def names() -> list[str]:
    """Every suite there is."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if _known(module.name))


def suite(name: str) -> Suite:
    """The suite of that name.

    Raises:
      UserError: there is none; names the nearest.
    """
    check_known("suite", name, names())
    return _known(name)

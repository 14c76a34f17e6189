"""A mixture as it is written beside a token store: which tasks are drawn from, and what their sizes are.

`mixtures/<name>.json`, format 1: name, eps, the proportions of its benchmarks or null, its tasks, how much of each
benchmark was there (`coverage`), and a checksum of all that. One written by hand may go without the last two.
"""

import dataclasses
import fnmatch
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optiml_jax.common.errors import DataError, UserError, nearest
from optiml_jax.common.files import write_atomically

FORMAT = 1
EPS = 4_096  # the paper's cap on the examples of a task (4.2)

# {benchmark: {role: [tasks with files, tasks there are]}}
Coverage = Mapping[str, Mapping[str, Sequence[int]]]


@dataclasses.dataclass(frozen=True)
class TaskSize:
    """A task of a mixture; `examples` before any cap."""

    name: str
    benchmark: str
    category: str
    examples: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A cached mixture.

    Attributes:
      eps: cap on the examples of a task in the rates.
      benchmarks: share of each benchmark, in any unit; None: one capped proportion over all tasks.
    """

    name: str
    tasks: tuple[TaskSize, ...]
    eps: int = EPS
    benchmarks: Mapping[str, float] | None = None
    coverage: Coverage | None = None

    @classmethod
    def read(cls, path: str | os.PathLike) -> "Manifest":
        """From its file.

        Raises:
          UserError: there is no such file (names the nearest mixtures), or it has another format.
          DataError: it is not a manifest, or not as it was written.
        """
        path = Path(path)
        if not path.exists():
            close = nearest(path.stem, (other.stem for other in path.parent.glob("*.json")))
            raise UserError(f"{path}: no such mixture in this cache{close}; write it with python -m tools.cache_tasks")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            tasks = tuple(TaskSize(**task) for task in content["tasks"])
            if content.pop("checksum", None) not in (None, _checksum(content)):
                raise DataError(f"{path}: not as it was written (its checksum differs); cache the mixture again")
            if content.pop("format", None) != FORMAT:
                raise UserError(f"{path}: not of format {FORMAT}, which this version reads; cache the mixture again")
            manifest = cls(**content | {"tasks": tasks})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not a mixture manifest ({error!r}); cache the mixture again") from error
        if len({task.name for task in tasks}) < len(tasks):
            raise DataError(f"{path}: a task is listed twice; cache the mixture again")
        return manifest

    def write(self, path: str | os.PathLike) -> None:
        """To its file, with a checksum."""
        content: dict[str, Any] = {"format": FORMAT, "name": self.name, "eps": self.eps, "benchmarks": self.benchmarks}
        content |= {"tasks": [dataclasses.asdict(task) for task in self.tasks]}
        if self.coverage is not None:
            content["coverage"] = self.coverage
        content["checksum"] = _checksum(content)
        write_atomically(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")

    def only(self, tasks: Sequence[str] | None = None, categories: Sequence[str] | None = None) -> "Manifest":
        """The same mixture of some of its tasks; benchmarks of which none is left lose their share.

        Args:
          tasks, categories: names or patterns ("flan.*"), of which one must fit; None: all.

        Raises:
          UserError: a pattern that fits nothing, or no task is left.
        """
        if tasks is None and categories is None:
            return self
        kept = _fitting(_fitting(self.tasks, tasks, "name", "tasks"), categories, "category", "categories")
        return dataclasses.replace(self, tasks=kept, benchmarks=present(self.benchmarks, kept))

    def cap(self, eps: int | None = None) -> int:
        """The cap on a task's examples: `eps`, else its own."""
        return self.eps if eps is None else eps


def present(proportions: Mapping[str, float] | None, tasks: Sequence[TaskSize]) -> dict[str, float] | None:
    """The proportions of the benchmarks that have a task; they need not add up to anything. None stays None."""
    there = {task.benchmark for task in tasks}
    return proportions and {name: share for name, share in proportions.items() if name in there}


def _fitting(
    tasks: tuple[TaskSize, ...], patterns: Sequence[str] | None, field: str, setting: str
) -> tuple[TaskSize, ...]:
    if patterns is None:
        return tasks
    if isinstance(patterns, str) or not patterns:
        raise UserError(f"{setting} is {patterns!r}; it must be a list of names or patterns, such as ['flan.*']")
    names = {getattr(task, field) for task in tasks}
    kept: set[str] = set()
    for pattern in patterns:
        fitting = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not fitting:
            raise UserError(
                f"{setting}: {pattern!r} fits no {field} of what is left of the mixture{nearest(pattern, names)}"
            )
        kept.update(fitting)
    return tuple(task for task in tasks if getattr(task, field) in kept)


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def coverage_text(coverage: Coverage) -> str:
    """How much of each benchmark is there, as in "bench: 188 of 757 train and 25 of 119 test tasks have files"."""
    texts = []
    for name, roles in coverage.items():
        parts = [f"{have:,} of {count:,} {role}" for role, (have, count) in sorted(roles.items(), reverse=True)]
        texts.append(f"{name}: {' and '.join(parts)} tasks have files")
    return "; ".join(texts)

"""The manifest of a cached mixture: its tasks and their sizes.

`mixtures/<name>/<specification>.json`, format 2: name, eps, the proportions of its benchmarks or null, its tasks with
their contents, how many tasks of each benchmark have data (`coverage`), the specification that decided all that, the
ledgers of its own suites, and a checksum.
"""

import dataclasses
import fnmatch
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec

from optiml_jax.common import typed_json
from optiml_jax.common.errors import DataError, UserError, nearest
from optiml_jax.common.files import write_atomically
from optiml_jax.common.typed_json import Count
from optiml_jax.data.specification import Specification

FORMAT = 2
RECORD = "manifest.json"  # in a MODEL_DIR: the mixture on which the run trains
SEPARATOR = "+"  # joins the names of the benchmarks in a mixture of several, such as "jsonl+flan"
UNKNOWN = Specification(tokenizer="", vocab_size=0)  # of a hand-written manifest
CACHE_AGAIN = "cache the mixture again"
EPS = 4_096  # the paper's cap on the examples per task (4.2)

# {benchmark: {role: [tasks with data, all tasks]}}
Coverage = Mapping[str, Mapping[str, Sequence[int]]]


@dataclasses.dataclass(frozen=True)
class TaskSize:
    """A task of a mixture; `examples` is its size before any cap, `content` names its tokens (`store.py`)."""

    name: str
    benchmark: str
    category: str
    examples: Count
    content: str = ""


class Document(TypedDict):
    """The fields of a manifest file besides those of `Manifest`. A manifest that is written by hand has no checksum."""

    format: int
    checksum: NotRequired[str | None]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A cached mixture.

    Attributes:
      eps: cap on the examples per task, for the sampling rates.
      benchmarks: share of each benchmark, in any unit; None: one capped proportion over all tasks.
      coverage: None if it is not known.
      specification: what the tokens were made from.
      ledgers: path, relative to the CACHE_DIR, of the ledger of each suite that evaluates the mixture.
    """

    name: str
    tasks: tuple[TaskSize, ...]
    eps: Annotated[int, msgspec.Meta(ge=1)] = EPS
    benchmarks: Mapping[str, float] | None = None
    coverage: Coverage | None = None
    specification: Specification = UNKNOWN
    ledgers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, path: str | os.PathLike) -> "Manifest":
        """Reads a manifest.

        Raises:
          UserError: the file does not exist (the message names the nearest mixtures), or has another format.
          DataError: the file is not a manifest, or its checksum differs.
        """
        path = Path(path)
        try:
            content = typed_json.read(path, Document, CACHE_AGAIN)
        except FileNotFoundError:
            close = nearest(path.stem, (other.stem for other in path.parent.glob("*.json")))
            raise UserError(f"{path}: no such manifest{close}; write it with python -m tools.cache_tasks") from None
        if content.pop("checksum", None) not in (None, typed_json.checksum(content)):
            raise DataError(f"{path}: damaged (its checksum differs); {CACHE_AGAIN}")
        if content.pop("format") != FORMAT:
            raise UserError(f"{path}: not of format {FORMAT}, which this version reads; {CACHE_AGAIN}")
        names = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(content.keys() - names):
            raise DataError(f"{path}: unknown field {unknown[0]}{nearest(unknown[0], names)}; {CACHE_AGAIN}")
        manifest = typed_json.convert(content, cls, str(path), CACHE_AGAIN)
        if len({task.name for task in manifest.tasks}) < len(manifest.tasks):
            raise DataError(f"{path}: a task is listed twice; {CACHE_AGAIN}")
        return manifest

    def write(self, path: str | os.PathLike) -> None:
        """Writes the manifest with its checksum."""
        content: dict[str, Any] = {"format": FORMAT, "name": self.name, "eps": self.eps, "benchmarks": self.benchmarks}
        content |= {"tasks": [dataclasses.asdict(task) for task in self.tasks], "ledgers": self.ledgers}
        content["specification"] = dataclasses.asdict(self.specification)
        if self.coverage is not None:
            content["coverage"] = self.coverage
        content["checksum"] = typed_json.checksum(content)
        write_atomically(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")

    def only(self, tasks: Sequence[str] | None = None, categories: Sequence[str] | None = None) -> "Manifest":
        """Restricts the mixture to some of its tasks; benchmarks without a remaining task lose their share.

        Args:
          tasks, categories: names or patterns ("flan.*"), one of which must match; None: all. Those of a benchmark in
            `left_out` have no effect.

        Raises:
          UserError: a pattern matches nothing, or no task remains.
        """
        if tasks is None and categories is None:
            return self
        return self.with_tasks(
            _matching(
                _matching(self.tasks, tasks, "name", "tasks", self.left_out), categories, "category", "categories"
            )
        )

    def with_tasks(self, tasks: Iterable[TaskSize]) -> "Manifest":
        """The mixture with these of its tasks."""
        tasks = tuple(tasks)
        return dataclasses.replace(self, tasks=tasks, benchmarks=present(self.benchmarks, tasks))

    @property
    def left_out(self) -> set[str]:
        """Benchmarks of the mixture without a task, because their data are missing or none of their tasks is
        selected."""
        return set(self.coverage or ()) - {task.benchmark for task in self.tasks}

    def cap(self, eps: int | None = None) -> int:
        """The cap on the examples per task: `eps`, or the manifest's own if it is None."""
        return self.eps if eps is None else eps


def present(proportions: Mapping[str, float] | None, tasks: Sequence[TaskSize]) -> dict[str, float] | None:
    """The proportions of the benchmarks that have a task; they need not sum to anything. None stays None."""
    benchmarks = {task.benchmark for task in tasks}
    return proportions and {name: share for name, share in proportions.items() if name in benchmarks}


def matching_names(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a pattern matches; if there are none, those that it matches without their benchmark, as reports
    show them ("task1344_glue" for "super_natural_instructions.task1344_glue")."""
    names = list(names)
    whole = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    return whole or [name for name in names if fnmatch.fnmatchcase(name.partition(".")[2], pattern)]


def _matching(
    tasks: tuple[TaskSize, ...],
    patterns: Sequence[str] | None,
    field: str,
    setting: str,
    left_out: Collection[str] = (),
) -> tuple[TaskSize, ...]:
    if patterns is None:
        return tasks
    if isinstance(patterns, str) or not patterns:
        raise UserError(f"{setting} is {patterns!r}; it must be a list of names or patterns, such as ['flan.*']")
    names = {getattr(task, field) for task in tasks}
    selected: set[str] = set()
    for pattern in patterns:
        matches = matching_names(pattern, names)
        if not matches and pattern.split(".")[0] not in left_out:
            raise UserError(
                f"{setting}: {pattern!r} matches no {field} of what is left of the mixture{nearest(pattern, names)}"
            )
        selected.update(matches)
    if not selected:
        raise UserError(f"{setting}: the data of {', '.join(patterns)} were left out of the mixture; name others")
    return tuple(task for task in tasks if getattr(task, field) in selected)


def coverage_text(coverage: Coverage) -> str:
    """Describes the coverage, as in "bench: 188 of 757 train and 25 of 119 test tasks have files"."""
    texts = []
    for name, roles in coverage.items():
        parts = [f"{present:,} of {count:,} {role}" for role, (present, count) in sorted(roles.items(), reverse=True)]
        texts.append(f"{name}: {' and '.join(parts)} tasks have files")
    return "; ".join(texts)

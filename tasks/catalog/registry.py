"""The registry of benchmarks and their tasks: the catalog, and a user's data folders.

Every benchmark is a module of `tasks/benchmarks/` with a function `discover(directory, options) -> Benchmark`. From its
tasks, `tasks/caching/` makes token stores, `tasks/suites/` prompt ledgers and `tasks/seqio_tasks.py` seqio tasks.
"""

import csv
import functools
import importlib
import os
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optiml_jax.common.errors import DataError, UserError, check_known, nearest
from optiml_jax.data.specification import DEFAULTS, CacheOptions
from optiml_jax.evaluation.metrics import Metric
from optiml_jax.evaluation.prompts.ledger import GENERATE
from tasks.example import Record, Skipped, Template
from tasks.task import Task

CATALOG = Path(__file__).with_name("tasks.tsv")
BENCHMARKS = "tasks.benchmarks"  # the package of their modules, which import this one and are imported by name
TEMPLATES = CATALOG.with_name("templates.tsv")


class MissingError(DataError):
    """The data of a benchmark are missing. A mixture may leave the benchmark out (`MISSING_BENCHMARKS`)."""


@dataclass(frozen=True)
class CatalogRow:
    """A line of `catalog/tasks.tsv`.

    Attributes:
      source: the data set that the task was made from.
      split: default split: "train", "test", "test_xlingual", "excluded" (by the benchmark's authors), "no_template" (of
        the original task, so that only `all_templates` reads it), or "duplicate": another benchmark has the same data
        set, and the task is only read from there (paper 2.2).
      output_type: `RANK` or `GENERATE`: whether the model chooses among candidates or writes the answer.
      style: "task" (one instruction for all examples, after which demonstrations are inserted) or "instance" (paper
        2.2).
      level: level of generalization at which it is evaluated (paper 2.3, Table 15); empty for tasks that the paper only
        trains on. `opt_iml` leaves out what is evaluated as a new task or a new category.
      reason: for category, split and metric, where they are not the benchmark's own.
    """

    name: str
    benchmark: str
    category: str
    source: str
    split: str
    metric: str
    output_type: str = GENERATE
    style: str = "instance"
    level: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Benchmark:
    """The contents of a data folder: tasks by name, and files that belong to no split.

    Attributes:
      rows: entries of the official lists (the folder's, else the catalog's) for every task of the benchmark, with or
        without data. Mixtures and suites take their defaults from them.
      missing: benchmarks of a mixture that are left out because their data are missing.
      notes: lines about what is read that a user should know.
    """

    tasks: dict[str, Task]
    left_out: tuple[Skipped, ...] = ()
    rows: Mapping[str, CatalogRow] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def listed(self, *splits: str) -> list[Task]:
        """The tasks that have data and are listed in one of these splits."""
        return [task for name, task in self.tasks.items() if self.rows[name].split in splits]

    @property
    def coverage(self) -> dict[str, dict[str, list[int]]]:
        """Number of tasks with data: {benchmark: {split: [tasks with files, tasks listed]}}, for train and test
        tasks."""
        coverage: dict[str, dict[str, list[int]]] = {}
        for name, row in self.rows.items():
            if row.split in ("train", "test"):
                counts = coverage.setdefault(row.benchmark, {}).setdefault(row.split, [0, 0])
                counts[0] += name in self.tasks
                counts[1] += 1
        return coverage


def listed(path: Path) -> list[dict[str, str]]:
    """Reads one of the catalog's files: tab-separated, with a header, without quotes."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@functools.cache
def reviewed_templates(benchmark: str) -> dict[str, tuple[str, str]]:
    """Template -> ("keep" or "drop", reason), for templates that were reviewed individually (paper 2.4)."""
    decided = (row for row in listed(TEMPLATES) if row["benchmark"] == benchmark)
    return {row["template"]: (row["decision"], row["reason"]) for row in decided}


@functools.cache
def _catalogs() -> dict[str, dict[str, CatalogRow]]:
    """The catalog by benchmark, read once."""
    rows: dict[str, dict[str, CatalogRow]] = {}
    for row in listed(CATALOG):
        rows.setdefault(row["benchmark"], {})[row["name"]] = CatalogRow(**row)
    return rows


def catalog(benchmark: str) -> dict[str, CatalogRow]:
    """The tasks of a benchmark by name, with or without data."""
    return _catalogs().get(benchmark, {})


def stems(benchmark: str) -> list[str]:
    """The names of a benchmark's tasks, without the benchmark's own."""
    return [name.removeprefix(f"{benchmark}.") for name in catalog(benchmark)]


def without_data(benchmark: str) -> Benchmark:
    """The catalog's tasks of a benchmark, which can be named and mixed but not read."""

    def read(split: str) -> Iterator[Record | Skipped]:
        raise UserError(
            f"DATA_DIR: {benchmark} is missing; set OPTIML_DATA_DIR or call tasks.seqio_tasks.use_data_dir(folder)"
        )

    rows = catalog(benchmark)
    return Benchmark({name: _unread(row, read) for name, row in rows.items()}, rows=rows)


def _unread(row: CatalogRow, read: Callable[..., Any]) -> Task:
    templates = (Template("unknown", Metric(row.metric), output_type=row.output_type),)
    splits = ("train", "validation", "test")
    return Task(row.name, row.benchmark, row.category, row.source, (), splits, templates, read, read)


def slug(text: str) -> str:
    """Category name in the catalog's form: "Fill in The Blank" -> "fill_in_the_blank"."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def task_name(benchmark: str, stem: str, ascii_only: bool = True) -> str:
    """Registered name of a raw task file; seqio allows no "-" and no other punctuation."""
    return f"{benchmark}." + re.sub(r"[^\w.:#]", "_", stem, flags=re.ASCII if ascii_only else 0)


def benchmark_names() -> list[str]:
    """Names of all benchmarks, which are the modules of `tasks/benchmarks/`."""
    return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(BENCHMARKS).__path__))


def module_of(benchmark: str) -> str:
    """Name of a benchmark's module."""
    return f"{BENCHMARKS}.{benchmark}"


def built_in(benchmark: str) -> bool:
    """Whether a benchmark needs no data directory: its module sets `BUILT_IN = True`."""
    return getattr(importlib.import_module(module_of(benchmark)), "BUILT_IN", False)


def _own_layout(benchmark: str) -> bool:
    """Whether a data directory without a folder of the benchmark's name is its folder: its module sets `OWN_LAYOUT`."""
    return getattr(importlib.import_module(module_of(benchmark)), "OWN_LAYOUT", False)


def folder(benchmark: str, data_dir: str | os.PathLike | None) -> Path | None:
    """A benchmark's folder in `data_dir`, None for a built-in one; or `data_dir` itself for a user's own layout.

    Raises:
      UserError: `data_dir` is missing or not a folder.
      MissingError: it has no folder for the benchmark.
    """
    if built_in(benchmark):
        return None
    if data_dir is None:
        raise UserError(
            f"DATA_DIR: {benchmark} needs a folder with one folder per benchmark; give --data_dir (in gin DATA_DIR)"
        )
    directory = Path(data_dir) / benchmark
    if _own_layout(benchmark) and Path(data_dir).exists() and not directory.is_dir():
        return Path(data_dir)
    if not Path(data_dir).is_dir():
        raise UserError(f"DATA_DIR: {data_dir} is not a folder; it must contain the folder {benchmark}")
    if not directory.is_dir():
        inside = [path.name for path in Path(data_dir).iterdir() if path.is_dir()]
        parent = "; did you mean its parent?" if Path(data_dir).name == benchmark else nearest(benchmark, inside)
        raise MissingError(f"DATA_DIR: {data_dir} has no folder {benchmark}{parent}")
    return directory


def discover(benchmark: str, data_dir: str | os.PathLike | None = None, options: CacheOptions = DEFAULTS) -> Benchmark:
    """Discovers every task of a benchmark that has data. Reads the catalog and file names, but few files.

    Raises:
      UserError: the benchmark is unknown.
      MissingError: its folder, or everything that should be in it, is missing.
      DataError: a file needed to know a task cannot be read.
    """
    check_known("benchmark", benchmark, benchmark_names())
    module = importlib.import_module(module_of(benchmark))
    return module.discover(folder(benchmark, data_dir), options)

"""Finding benchmarks and their tasks: the catalog, and the folders that a user has.

Every benchmark is a module of `tasks/benchmarks/` with a function `discover(directory, options) -> Benchmark`. From its
tasks `tasks/caching/` makes token stores, `tasks/suites/` prompt ledgers and `tasks/seqio_tasks.py` seqio's tasks.
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
from optiml_jax.evaluation.metrics import Metric
from tasks import benchmarks
from tasks.example import Record, Skipped, Template
from tasks.task import Options, Task

CATALOG = Path(__file__).with_name("tasks.tsv")
TEMPLATES = CATALOG.with_name("templates.tsv")


class MissingError(DataError):
    """The data of a benchmark are not there. A mixture may leave the benchmark out (`MISSING_BENCHMARKS`)."""


@dataclass(frozen=True)
class CatalogRow:
    """One line of `catalog/tasks.tsv`.

    Attributes:
      source: the data set it was made from.
      split: by default: "train", "test", "test_xlingual", "excluded" (by the benchmark's authors), or "duplicate": the
        same data set is in another benchmark too, and the task is read from there alone (paper 2.2).
      style: "task" (an instruction for all examples, which demonstrations come after) or "instance" (paper 2.2).
      level: of generalization that it is evaluated at (paper 2.3, Table 15), empty where it is trained on alone.
      reason: of category, split and metric, where they are not the benchmark's own.
    """

    name: str
    benchmark: str
    category: str
    source: str
    split: str
    metric: str
    style: str = "instance"
    level: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Benchmark:
    """What a folder holds: its tasks by name, and the files that belong to no split.

    `rows`: what the official lists (the folder's, else the catalog's) say of every task of the benchmark, whether or
    not its files are there. Mixtures and suites read their defaults from them.
    """

    tasks: dict[str, Task]
    left_out: tuple[Skipped, ...] = ()
    rows: Mapping[str, CatalogRow] = field(default_factory=dict)

    def listed(self, *splits: str) -> list[Task]:
        """The tasks that are there and that the lists put into one of these splits."""
        return [task for name, task in self.tasks.items() if self.rows[name].split in splits]

    @property
    def coverage(self) -> dict[str, dict[str, list[int]]]:
        """How much is there: {benchmark: {split: [tasks with files, tasks listed]}} of what is trained or tested on."""
        found: dict[str, dict[str, list[int]]] = {}
        for name, row in self.rows.items():
            if row.split in ("train", "test"):
                counts = found.setdefault(row.benchmark, {}).setdefault(row.split, [0, 0])
                counts[0] += name in self.tasks
                counts[1] += 1
        return found


def listed(path: Path) -> list[dict[str, str]]:
    """The lines of one of the catalog's files: tabs, a header, no quotes."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@functools.cache
def reviewed_templates(benchmark: str) -> dict[str, tuple[str, str]]:
    """Template -> ("keep" or "drop", why), of those of a benchmark that were looked at one by one (paper 2.4)."""
    decided = (row for row in listed(TEMPLATES) if row["benchmark"] == benchmark)
    return {row["template"]: (row["decision"], row["reason"]) for row in decided}


@functools.cache
def _catalogs() -> dict[str, dict[str, CatalogRow]]:
    """The catalog by benchmark: it is read once."""
    found: dict[str, dict[str, CatalogRow]] = {}
    for row in listed(CATALOG):
        found.setdefault(row["benchmark"], {})[row["name"]] = CatalogRow(**row)
    return found


def catalog(benchmark: str) -> dict[str, CatalogRow]:
    """The tasks of a benchmark by name, whether or not their files are there."""
    return _catalogs().get(benchmark, {})


def stems(benchmark: str) -> list[str]:
    """The names of a benchmark's tasks without its own."""
    return [name.removeprefix(f"{benchmark}.") for name in catalog(benchmark)]


def without_data(benchmark: str) -> Benchmark:
    """The catalog's tasks as tasks that can be named and mixed but not read."""

    def read(split: str) -> Iterator[Record | Skipped]:
        raise UserError(
            f"DATA_DIR: {benchmark} is not there; set OPTIML_DATA_DIR or call tasks.seqio_tasks.use_data_dir(folder)"
        )

    rows = catalog(benchmark)
    return Benchmark({name: _unread(row, read) for name, row in rows.items()}, rows=rows)


def _unread(row: CatalogRow, read: Callable[..., Any]) -> Task:
    templates = (Template("unknown", Metric(row.metric)),)
    splits = ("train", "validation", "test")
    return Task(row.name, row.benchmark, row.category, row.source, (), splits, templates, read, read)


def slug(text: str) -> str:
    """Category names as the catalog writes them: "Fill in The Blank" -> "fill_in_the_blank"."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def task_name(benchmark: str, stem: str) -> str:
    """Registered name of a raw task file: seqio admits no "-" and no other punctuation."""
    return f"{benchmark}." + re.sub(r"[^\w.:#]", "_", stem, flags=re.ASCII)


def benchmark_names() -> list[str]:
    """The modules of `tasks/benchmarks/`."""
    return sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__))


def module_of(benchmark: str) -> str:
    """Its module's name."""
    return f"{benchmarks.__name__}.{benchmark}"


def built_in(benchmark: str) -> bool:
    """Whether it needs no data directory: its module says `BUILT_IN = True`."""
    return getattr(importlib.import_module(module_of(benchmark)), "BUILT_IN", False)


def _own_layout(benchmark: str) -> bool:
    """Whether a data directory without a folder of its name is its folder: its module says `OWN_LAYOUT = True`."""
    return getattr(importlib.import_module(module_of(benchmark)), "OWN_LAYOUT", False)


def folder(benchmark: str, data_dir: str | os.PathLike | None) -> Path | None:
    """The benchmark's folder in `data_dir` (None for a built-in one), or what is the user's own.

    Raises:
      UserError: no data directory was given, or it is none.
      MissingError: it has no such folder.
    """
    if built_in(benchmark):
        return None
    if data_dir is None:
        raise UserError(
            f"DATA_DIR: {benchmark} needs a folder with one folder a benchmark; give --data_dir (in gin DATA_DIR)"
        )
    directory = Path(data_dir) / benchmark
    if _own_layout(benchmark) and Path(data_dir).exists() and not directory.is_dir():
        return Path(data_dir)
    if not Path(data_dir).is_dir():
        raise UserError(f"DATA_DIR: {data_dir} is not a folder; it must hold the folder {benchmark}")
    if not directory.is_dir():
        inside = [path.name for path in Path(data_dir).iterdir() if path.is_dir()]
        parent = "; did you mean its parent?" if Path(data_dir).name == benchmark else nearest(benchmark, inside)
        raise MissingError(f"DATA_DIR: {data_dir} has no folder {benchmark}{parent}")
    return directory


def discover(benchmark: str, data_dir: str | os.PathLike | None = None, options: Options = Options()) -> Benchmark:
    """Every task of a benchmark whose files are there. Reads file names and the catalog, hardly any file.

    Raises:
      UserError: unknown benchmark.
      MissingError: its folder, or all that it should hold, is missing.
      DataError: a file that must be read to know the task cannot be.
    """
    check_known("benchmark", benchmark, benchmark_names())
    module = importlib.import_module(module_of(benchmark))
    return module.discover(folder(benchmark, data_dir), options)

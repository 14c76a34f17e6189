"""Tasks in plain Python: where their raw files are, how to read and render them, what is measured. No TensorFlow.

Every benchmark is a module of `tasks/benchmarks/` with a function `discover(directory, options) -> Benchmark`. From its
tasks `tasks/seqio_tasks.py` makes `seqio.Task`s and `tasks/caching.py` the token store and the prompts.
"""

import csv
import functools
import heapq
import importlib
import itertools
import operator
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from optiml_jax.errors import DataError, UserError, nearest
from tasks import benchmarks, prompts
from tasks.example import Example, Record, Skipped

CATALOG = Path(__file__).parent / "catalog" / "tasks.tsv"
MAX_EXAMPLES = 100_000  # of a task, at random (paper 2.2 and Table 1); FLAN takes 30,000
MAX_BAD = 0.01  # of a split's records, before it is an error
WAY_OUT = "remove the file or pass --allow_empty_tasks"
BUILT_IN = ("samples",)  # benchmarks that need no data directory


@dataclass(frozen=True)
class Options:
    """What a user may change about reading. `held_out_instances`: of each train task; None: the benchmark's default."""

    held_out_instances: int | None = None
    allow_bad_records: bool = False
    allow_empty_tasks: bool = False


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
      name: "<benchmark>.<task>" of letters, digits and `_ . : #`, which is what seqio admits.
      category: task category in lower case with underscores; source: the data set it was made from.
      role: "train", "test" or "excluded" (in no mixture).
      level: what an evaluation on it shows (paper 2.3): "fully_held_out" (a new category), "held_out_task" (a new
        task of a known category), "held_out_instances" (validation split of a train task); None: not evaluated.
      files: the raw files; what is read depends on nothing else.
      splits: "train" and "validation", or "test".
      read: split -> its raw records and the unusable ones; render: one record -> one example.
      max_examples: to train on; of more, so many are chosen at random. A benchmark with a cap of its own sets it.
    """

    name: str
    benchmark: str
    category: str
    source: str
    role: str
    level: str | None
    metric: str
    files: tuple[Path, ...]
    splits: tuple[str, ...]
    read: Callable[[str], Iterator[Record | Skipped]]
    render: Callable[[Record], Example]
    options: Options = Options()
    max_examples: int = MAX_EXAMPLES

    def select(self, split: str) -> "Selection":
        """The records of a split that are used. The cap's choice depends on the seedless hash of a record's id alone.

        Raises:
          DataError: a file cannot be read, or more than 1% of the records are unusable and that is not allowed, or
            all are.
        """
        bad: list[tuple[int, Skipped]] = []

        def usable() -> Iterator[tuple[int, Record]]:
            for place, record in enumerate(self.read(split)):
                if isinstance(record, Skipped):
                    bad.append((place, record))
                else:
                    yield place, record

        records, limit = usable(), self.max_examples if split == "train" else sys.maxsize - 1
        kept = list(itertools.islice(records, limit + 1))
        count = len(kept)
        if count > limit:
            total = itertools.count(count)
            everything = itertools.chain(kept, (record for record, _ in zip(records, total)))
            kept = heapq.nsmallest(limit, everything, key=lambda item: prompts.draw("cap", self.name, item[1].id))
            count = next(total)
        count += len(bad)
        if bad and len(bad) == count and not self.options.allow_empty_tasks:
            where, reason = bad[0][1].where, bad[0][1].reason
            raise DataError(f"{where}: {reason}, and no other record of {split} can be used; {WAY_OUT}")
        if len(bad) > MAX_BAD * count and not self.options.allow_bad_records:
            where, reason = bad[0][1].where, bad[0][1].reason
            more = f" ({len(bad)} of {count} records)"
            raise DataError(f"{where}: {reason}{more}; mend them or pass --allow_bad_records")
        in_order = sorted([*kept, *bad], key=operator.itemgetter(0))
        return Selection([record for _, record in in_order], count)

    def examples(self, split: str, shard: int = 0, shards: int = 1) -> Iterator[Example | Skipped]:
        """The examples of a split in file order, unusable records among them; of every `shards`-th record if asked.

        Raises:
          DataError: see `select`.
        """
        for record in self.select(split).records[shard::shards]:
            yield record if isinstance(record, Skipped) else self.render(record)


@dataclass(frozen=True)
class Selection:
    """`records` of a split in file order, unusable ones among them, and of how many in its files, `raw`."""

    records: list[Record | Skipped]
    raw: int


@dataclass(frozen=True)
class Benchmark:
    """What a folder holds: its tasks by name, and the files that belong to no split.

    `listed`: how many tasks of each role the official lists name, by benchmark, whether or not their files are there.
    """

    tasks: dict[str, Task]
    left_out: tuple[Skipped, ...] = ()
    listed: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def coverage(found: Benchmark) -> dict[str, dict[str, list[int]]]:
    """How much of each benchmark is there: {benchmark: {role: [tasks with files, tasks listed]}}, "excluded" aside."""
    return {
        name: {
            role: [sum((task.benchmark, task.role) == (name, role) for task in found.tasks.values()), count]
            for role, count in roles.items()
            if role != "excluded"
        }
        for name, roles in found.listed.items()
    }


@dataclass(frozen=True)
class CatalogRow:
    """One line of `catalog/tasks.tsv`."""

    name: str
    benchmark: str
    category: str
    source: str
    split: str
    metric: str


@functools.cache
def catalog(benchmark: str) -> dict[str, CatalogRow]:
    """The tasks of a benchmark by name, whether or not their files are there."""
    with CATALOG.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return {row["name"]: CatalogRow(**row) for row in rows if row["benchmark"] == benchmark}


def without_data(benchmark: str) -> Benchmark:
    """The catalog's tasks as tasks that can be named and mixed but not read."""

    def read(split: str) -> Iterator[Record | Skipped]:
        raise UserError(f"DATA_DIR: {benchmark} is not there; set OPTIML_DATA_DIR or call tasks.use_data_dir(folder)")

    tasks = {}
    for name, row in catalog(benchmark).items():
        splits = ("test",) if row.split == "test" else ("train",)
        about = (row.category, row.source, row.split, None, row.metric)
        tasks[name] = Task(name, benchmark, *about, files=(), splits=splits, read=read, render=read)
    return Benchmark(tasks)


def slug(text: str) -> str:
    """Category names as the catalog writes them: "Fill in The Blank" -> "fill_in_the_blank"."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def task_name(benchmark: str, stem: str) -> str:
    """Registered name of a raw task file: seqio admits no "-" and no other punctuation."""
    return f"{benchmark}." + re.sub(r"[^\w.:#]", "_", stem, flags=re.ASCII)


def benchmark_names() -> list[str]:
    """The modules of `tasks/benchmarks/`."""
    return sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__))


def folder(benchmark: str, data_dir: str | os.PathLike | None) -> Path | None:
    """The benchmark's folder in `data_dir` (None for a built-in one).

    Raises:
      UserError: no data directory was given, or it has no such folder.
    """
    if benchmark in BUILT_IN:
        return None
    if data_dir is None:
        raise UserError(
            f"DATA_DIR: {benchmark} needs a folder with one folder a benchmark; give --data_dir (in gin DATA_DIR)"
        )
    directory = Path(data_dir) / benchmark
    if not Path(data_dir).is_dir():
        raise UserError(f"DATA_DIR: {data_dir} is not a folder; it must hold the folder {benchmark}")
    if not directory.is_dir():
        inside = [path.name for path in Path(data_dir).iterdir() if path.is_dir()]
        parent = "; did you mean its parent?" if Path(data_dir).name == benchmark else nearest(benchmark, inside)
        raise UserError(f"DATA_DIR: {data_dir} has no folder {benchmark}{parent}")
    return directory


def discover(benchmark: str, data_dir: str | os.PathLike | None = None, options: Options = Options()) -> Benchmark:
    """Every task of a benchmark whose files are there. Reads file names and the catalog, hardly any file.

    Raises:
      UserError: unknown benchmark, or its folder is missing.
      DataError: a file that must be read to know the task cannot be.
    """
    if benchmark not in benchmark_names():
        raise UserError(f"no benchmark {benchmark}{nearest(benchmark, benchmark_names())}")
    module = importlib.import_module(f"{benchmarks.__name__}.{benchmark}")
    return module.discover(folder(benchmark, data_dir), options)

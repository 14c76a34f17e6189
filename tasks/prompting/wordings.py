"""Tasks without instructions of their own, each put into one wording (paper 2.2).

The wordings are `catalog/instructions.tsv`: a text with `{field}` where a field of the record goes, and the options of
a classification. A benchmark of such tasks says where their files lie and what is made of a row of them. One whose
prompts are known to the character, as those of an evaluation are, brings its wordings itself (`Source.wording`).
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from optiml_jax.evaluation.metrics import Metric
from tasks.catalog.registry import CATALOG, Benchmark, CatalogRow, MissingError, catalog, listed
from tasks.example import Example, Record, Skipped, Template
from tasks.prompting import prompts
from tasks.reading import records
from tasks.reading.fields import UnusableError
from tasks.reading.records import Row
from tasks.task import SHOWN_SPLIT, Options, Task

INSTRUCTIONS = CATALOG.with_name("instructions.tsv")
FIELD = re.compile(r"{(\w+)}")
NAMES = {"train": ("train",), "validation": ("validation", "valid", "dev", "val", "eval"), "test": ("test",)}
PAPERWORK = re.compile(r"(licen[cs]e|readme|\.git|notice|citation)", re.IGNORECASE)

Fields = dict[str, Any]
EXTRA = ("separator", "stop", "given", "part_of")  # of an `Example`


class UnfitError(Exception):
    """Why a row that is as it should be is no example of the task: counted and listed, whatever share of the rows."""


class Wording(NamedTuple):
    """How the records of a task are asked.

    Attributes:
      text: of a prompt, with `{field}`s.
      options: the answers of a classification.
      exact: the text is the whole prompt, to the character: no delimiter is added, no white space taken away.
    """

    text: str
    options: tuple[str, ...] = ()
    exact: bool = False


@dataclass(frozen=True)
class Source:
    """Where the records of a task lie, and what they are.

    Attributes:
      patterns: of its files below the benchmark's folder, `{split}` for any of `NAMES`; one that ends in "/" is a
        folder for `records.splits`. The first with files counts.
      recipe: the records that a row makes: the fields that the wording names, and `references`, a tuple of texts.
        Raises `UnusableError` where it makes none, `UnfitError` where it is not meant to.
      read: the rows of a file, and the split that they are read for.
      beside: patterns of files that `read` or `recipe` look into.
      named: a split, also one more than `NAMES` -> patterns of files that say it otherwise, after the others.
      once: of records of a split that say the same, the first alone is read.
      wording, metric: where the catalog's are not meant.
      drawn: whether each example is shown others at random, or all the first ones (`Task.demonstrations_drawn`).
    """

    patterns: tuple[str, ...]
    recipe: Callable[[Mapping[str, Any]], Iterable[Fields]]
    read: Callable[[Path, str], Iterator[Row | Skipped]] = lambda path, split: records.read([path])
    beside: tuple[str, ...] = ()
    named: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    once: bool = False
    wording: Wording | None = None
    metric: Metric | None = None
    drawn: bool = True

    def splits(self, directory: Path) -> dict[str, tuple[Path, ...]]:
        """The files of each split that is there."""
        folders = (directory / pattern for pattern in self.patterns if pattern.endswith("/"))
        for there in (records.splits(folder) for folder in folders if folder.is_dir()):
            if found := {split: there[name] for split, names in NAMES.items() for name in names if name in there}:
                return found
        found = {}
        for split in dict.fromkeys((*NAMES, *self.named)):
            names = NAMES.get(split, ())
            patterns = [pattern.replace("{split}", name) for pattern in self.patterns for name in names]
            tried = (_files(directory, pattern) for pattern in (*patterns, *self.named.get(split, ())))
            if files := next(filter(None, tried), ()):
                found[split] = files
        return found


def _files(directory: Path, pattern: str) -> tuple[Path, ...]:
    if "*" in pattern:
        found = (path for path in directory.glob(pattern) if path.is_file() and not PAPERWORK.search(path.name))
        return tuple(sorted(found))
    path = directory / pattern
    return (path,) if path.is_file() else ()


@functools.cache
def wordings() -> dict[str, Wording]:
    """The wording of every task that has one."""
    return {
        row["task"]: Wording(row["wording"].replace("\\n", "\n"), tuple(filter(None, row["options"].split("|"))))
        for row in listed(INSTRUCTIONS)
    }


def discover(
    benchmark: str,
    directory: Path,
    options: Options,
    sources: Mapping[str, Source],
    unread: Mapping[str, str] = {},
    longer: str = "cut",
) -> Benchmark:
    """The tasks of a benchmark whose files are there.

    Args:
      sources: by the task's name without the benchmark's.
      unread: pattern of files that are known and not read -> why.
      longer: see `Task`.

    Raises:
      MissingError: no file of any task.
    """
    known = catalog(benchmark)
    tasks: dict[str, Task] = {}
    left_out: list[Skipped] = []
    seen: set[Path] = set()
    for name, row in known.items():
        source = sources.get(name.removeprefix(f"{benchmark}."))
        splits = source.splits(directory) if source else {}
        if not splits:
            continue
        seen.update(path for files in splits.values() for path in files)
        if row.split == "duplicate":
            left_out.append(Skipped(str(next(iter(splits.values()))[0]), row.reason))
            continue
        beside = tuple(path for pattern in source.beside for path in _files(directory, pattern))
        seen.update(beside)
        tasks[name] = _task(row, source, splits, beside, longer, options)
    for pattern, reason in unread.items():
        found = [path for path in _files(directory, pattern) if path not in seen]
        left_out += [Skipped(str(path), reason) for path in found]
        seen.update(found)
    others = (path for path in sorted(directory.rglob("*")) if path.is_file() and path not in seen)
    left_out += [Skipped(str(path), "no task reads it") for path in others if not PAPERWORK.search(path.name)]
    if not tasks:
        expected = ", ".join([pattern for source in sources.values() for pattern in source.patterns][:3])
        might = f"; there might be {expected}, ..." if expected else ""
        raise MissingError(f"{directory}: no file of a known task{might} (docs/benchmark.md)")
    return Benchmark(tasks, tuple(left_out), known)


def _task(
    row: CatalogRow,
    source: Source,
    splits: Mapping[str, tuple[Path, ...]],
    beside: tuple[Path, ...],
    longer: str,
    options: Options,
) -> Task:
    wording = source.wording or wordings().get(row.name, Wording(""))
    files = dict.fromkeys((*(path for paths in splits.values() for path in paths), *beside))
    return Task(
        name=row.name,
        benchmark=row.benchmark,
        category=row.category,
        source=row.source,
        files=tuple(files),
        splits=tuple(splits),
        templates=(Template("instruction", source.metric or Metric(row.metric), wording.text),),
        read=functools.partial(_read, source, splits),
        render=functools.partial(render, row.name, row.style == "task", wording),
        options=options,
        demonstrations=SHOWN_SPLIT
        if SHOWN_SPLIT in source.named
        else "train"
        if "train" in splits
        else next(iter(splits)),
        demonstrations_drawn=source.drawn,
        longer=longer,
    )


def _read(source: Source, splits: Mapping[str, tuple[Path, ...]], split: str) -> Iterator[Record | Skipped]:
    """The records of a split, named by their number in it; what holds several is numbered within."""
    number = 0
    seen: set[int] = set()
    for path in splits.get(split, ()):
        for row in source.read(path, split):
            if isinstance(row, Skipped):
                yield row
                continue
            number += 1
            try:
                found = list(source.recipe(row.values))
                if not found:
                    raise UnusableError("holds no example")
            except UnfitError as error:
                found = [{"unfit": str(error)}]
            except UnusableError as error:
                yield Skipped(row.where, str(error))
                continue
            except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:  # a field of another kind
                yield Skipped(row.where, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
                continue
            for place, fields in enumerate(found, start=1):
                if source.once:
                    if (content := hash(repr(fields))) in seen:
                        continue
                    seen.add(content)
                name = str(number) if len(found) == 1 else f"{number}.{place}"
                name = (
                    f"{SHOWN_SPLIT}{name}" if split == SHOWN_SPLIT else name
                )  # no record that is asked has such a name
                yield Record(name, {"where": row.where, **fields})


def answers(*texts: str) -> Fields:
    """The field of a record that says what is accepted.

    Raises:
      UnusableError: nothing does.
    """
    references = tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if not references:
        raise UnusableError("no answer")
    return {"references": references}


def render(
    task: str,
    task_level: bool,
    wording: Wording,
    record: Record,
    template: Template,
    worded_as: str | None = None,
) -> Example | Skipped:
    """The example of a record: the wording with its fields, a delimiter unless that ends in ":" (paper 2.4).

    What a record says of its answers goes along: `candidates` of its own, and of `Example` the fields `EXTRA`.

    Args:
      task_level: what stands before the line of the first field is the instruction of the whole task, which
        demonstrations come after.
    """
    fields, where = record.fields, record.fields["where"]
    if "unfit" in fields:
        return Skipped(where, fields["unfit"])
    text = wording.text
    if missing := set(FIELD.findall(text)) - fields.keys():
        return Skipped(where, f"no field {min(missing)}")
    target = prompts.pick("reference", task, record.id, fields["references"])
    if wording.exact:
        source = FIELD.sub(lambda found: fields[found[1]], text)
    else:
        source = FIELD.sub(lambda found: fields[found[1]].strip(), text).strip()
        if text:
            source = prompts.with_delimiter(task, worded_as or record.id, source)
    candidates = fields.get("candidates", wording.options)
    return Example(
        record.id,
        source,
        target,
        fields["references"],
        candidates if template.metric.name == "accuracy" and target in candidates else None,
        own=text.rindex("\n", 0, FIELD.search(text).start()) if task_level else 0,
        **{name: fields[name] for name in EXTRA if name in fields},
    )

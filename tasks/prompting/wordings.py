"""Tasks without instructions of their own, each put into one wording (paper 2.2).

The wordings are in `catalog/instructions.tsv`: a text with `{field}` placeholders, and the options of a classification.
A benchmark of such tasks states where their files are and which records a row makes. One whose prompts are fixed to the
character, such as those of an evaluation, defines its wordings itself (`Source.wording`).
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from optiml_jax.data.specification import CacheOptions
from optiml_jax.evaluation.metrics import Metric
from optiml_jax.evaluation.prompts.ledger import RANK
from tasks.catalog.registry import CATALOG, Benchmark, CatalogRow, MissingError, catalog, listed
from tasks.example import Example, Record, Skipped, Template
from tasks.prompting import prompts
from tasks.reading import records
from tasks.reading.fields import UnusableError
from tasks.reading.records import Row
from tasks.task import SHOWN_SPLIT, Task

INSTRUCTIONS = CATALOG.with_name("instructions.tsv")
FIELD = re.compile(r"{(\w+)}")
NAMES = {"train": ("train",), "validation": ("validation", "valid", "dev", "val", "eval"), "test": ("test",)}
PAPERWORK = re.compile(r"(licen[cs]e|readme|\.git|notice|citation)", re.IGNORECASE)

Fields = dict[str, Any]
EXTRA = ("separator", "stop", "given", "part_of")  # fields of `Example` that a record may set


class UnfitError(Exception):
    """A well-formed row that is outside the task; counted, but not against the 1% of bad records."""


class Wording(NamedTuple):
    """How the records of a task are phrased.

    Attributes:
      text: of a prompt, with `{field}` placeholders.
      options: the answers of a classification.
      exact: whether the text is the whole prompt, to the character: no delimiter is added, no white space removed.
    """

    text: str
    options: tuple[str, ...] = ()
    exact: bool = False


@dataclass(frozen=True)
class Source:
    """Location of the records of a task, and the conversion of rows to records.

    Attributes:
      patterns: of its files in the benchmark's folder, with `{split}` for any of `NAMES`; one that ends in "/" is a
        folder for `records.splits`. The first pattern with files is used.
      recipe: returns the records that a row makes: the fields that the wording names, and `references`, a tuple of
        texts. Raises `UnusableError` for a bad row, `UnfitError` for one that is outside the task.
      read: returns the rows of a file, given the split that they are read for.
      beside: patterns of further files that `read` or `recipe` use.
      named: split, possibly one not in `NAMES` -> further patterns of its files.
      once: whether duplicate records of a split are read once.
      wording, metric: in place of the catalog's.
      drawn: whether each example has randomly drawn demonstrations, or all the first ones
        (`Task.demonstrations_drawn`).
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
        """The files of each split that has some."""
        folders = (directory / pattern for pattern in self.patterns if pattern.endswith("/"))
        for available in (records.splits(folder) for folder in folders if folder.is_dir()):
            matches = {split: available[name] for split, names in NAMES.items() for name in names if name in available}
            if matches:
                return matches
        files_by_split = {}
        for split in dict.fromkeys((*NAMES, *self.named)):
            names = NAMES.get(split, ())
            patterns = [pattern.replace("{split}", name) for pattern in self.patterns for name in names]
            tried = (_files(directory, pattern) for pattern in (*patterns, *self.named.get(split, ())))
            if files := next(filter(None, tried), ()):
                files_by_split[split] = files
        return files_by_split


def _files(directory: Path, pattern: str) -> tuple[Path, ...]:
    if "*" in pattern:
        matches = (path for path in directory.glob(pattern) if path.is_file() and not PAPERWORK.search(path.name))
        return tuple(sorted(matches))
    path = directory / pattern
    return (path,) if path.is_file() else ()


@functools.cache
def wordings() -> dict[str, Wording]:
    """The wordings of the catalog, by task."""
    return {
        row["task"]: Wording(row["wording"].replace("\\n", "\n"), tuple(filter(None, row["options"].split("|"))))
        for row in listed(INSTRUCTIONS)
    }


def discover(
    benchmark: str,
    directory: Path,
    options: CacheOptions,
    sources: Mapping[str, Source],
    unread: Mapping[str, str] = {},
    longer: str = "cut",
) -> Benchmark:
    """Discovers the tasks of a benchmark that have data.

    Args:
      sources: by the task's name without the benchmark's.
      unread: pattern of known files that are not read -> the reason.
      longer: see `Task`.

    Raises:
      MissingError: there is no file of any task.
    """
    rows = catalog(benchmark)
    tasks: dict[str, Task] = {}
    left_out: list[Skipped] = []
    seen: set[Path] = set()
    for name, row in rows.items():
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
        matches = [path for path in _files(directory, pattern) if path not in seen]
        left_out += [Skipped(str(path), reason) for path in matches]
        seen.update(matches)
    others = (path for path in sorted(directory.rglob("*")) if path.is_file() and path not in seen)
    left_out += [Skipped(str(path), "no task reads it") for path in others if not PAPERWORK.search(path.name)]
    if not tasks:
        expected = ", ".join([pattern for source in sources.values() for pattern in source.patterns][:3])
        might = f"; expected {expected}, ..." if expected else ""
        raise MissingError(f"{directory}: no file of a known task{might} (docs/benchmark.md)")
    return Benchmark(tasks, tuple(left_out), rows)


def _task(
    row: CatalogRow,
    source: Source,
    splits: Mapping[str, tuple[Path, ...]],
    beside: tuple[Path, ...],
    longer: str,
    options: CacheOptions,
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
        templates=(Template("instruction", source.metric or Metric(row.metric), wording.text, row.output_type),),
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
    """The records of a split, named by their number in it; several records of one row are numbered within it."""
    number = 0
    seen: set[int] = set()
    for path in splits.get(split, ()):
        for row in source.read(path, split):
            if isinstance(row, Skipped):
                yield row
                continue
            number += 1
            try:
                records_of_row = list(source.recipe(row.values))
                if not records_of_row:
                    raise UnusableError("has no example")
            except UnfitError as error:
                records_of_row = [{"unfit": str(error)}]
            except UnusableError as error:
                yield Skipped(row.where, str(error))
                continue
            except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:  # a field of another type
                yield Skipped(row.where, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
                continue
            for index, fields in enumerate(records_of_row, start=1):
                if source.once:
                    if (content := hash(repr(fields))) in seen:
                        continue
                    seen.add(content)
                name = str(number) if len(records_of_row) == 1 else f"{number}.{index}"
                # The prefix keeps demonstrations apart from the records of other splits.
                name = f"{SHOWN_SPLIT}{name}" if split == SHOWN_SPLIT else name
                yield Record(name, {"where": row.where, **fields})


def answers(*texts: str) -> Fields:
    """The field of a record with the accepted answers.

    Raises:
      UnusableError: there is none.
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
    """Renders a record: the wording with its fields, and a delimiter unless that ends in ":" (paper 2.4).

    The record may set its own `candidates`, and the fields `EXTRA` of `Example`.

    Args:
      task_level: whether the text before the line of the first field is the instruction of the whole task, after which
        demonstrations are inserted.
    """
    fields, where = record.fields, record.fields["where"]
    if "unfit" in fields:
        return Skipped(where, fields["unfit"])
    text = wording.text
    if missing := set(FIELD.findall(text)) - fields.keys():
        return Skipped(where, f"no field {min(missing)}")
    target = prompts.pick("reference", task, record.id, fields["references"])
    if wording.exact:
        source = FIELD.sub(lambda match: fields[match[1]], text)
    else:
        source = FIELD.sub(lambda match: fields[match[1]].strip(), text).strip()
        if text:
            source = prompts.with_delimiter(task, worded_as or record.id, source)
    candidates = fields.get("candidates", wording.options)
    return Example(
        record.id,
        source,
        target,
        fields["references"],
        candidates if template.output_type == RANK and target in candidates else None,
        input_start=text.rindex("\n", 0, FIELD.search(text).start()) if task_level else 0,
        **{name: fields[name] for name in EXTRA if name in fields},
    )

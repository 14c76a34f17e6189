"""A user's own data: files of rows (`tasks/reading/records.py`) in common forms (`tasks/reading/own_forms.py`).

A conversation is one training example, in which every turn of the assistant is a label; held out for evaluation, each
of these turns is a question, after everything that was said before it. A text alone is learned whole, and asks nothing.

A file is a task; a file whose records have categories is one task per category. A folder with `train.jsonl` and other
splits is one task; without a validation split, a tenth of the questions, at most 100, is held out.
"""

import collections
import dataclasses
import functools
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from optiml_jax import chat
from optiml_jax.common.errors import DataError
from optiml_jax.common.tables import first_few
from optiml_jax.data.specification import CacheOptions
from optiml_jax.evaluation.metrics import Metric
from optiml_jax.evaluation.prompts.ledger import RANK
from tasks.catalog.registry import Benchmark, CatalogRow, task_name
from tasks.example import Example, Record, Skipped, Template
from tasks.prompting import prompts
from tasks.reading import own_forms, records
from tasks.reading.fields import UnusableError
from tasks.reading.own_forms import CHAT, FORMS, INSTRUCTION, PROMPT, TEXT
from tasks.task import Task

NAME = "jsonl"
OWN_LAYOUT = True  # a data directory without a folder of this name is itself the folder or file
HELD_OUT, HELD_OUT_SHARE = 100, 10  # maximum number of held-out instances, and one in this many
MOST_CATEGORIES = 1000
UNKNOWN = "unknown"  # the category of records without one, in a file that has categories
SUFFIXES = (*records.SUFFIXES, *records.TABLES)
SPLITS = {  # names of files -> split
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SIGNS = {"+": " plus ", "#": " sharp "}  # C, C++ and C# are three categories


def discover(directory: Path, options: CacheOptions) -> Benchmark:
    """Discovers the tasks of a file or folder. Reads every file once.

    Raises:
      DataError: there is no readable file.
      UserError: the option `fields` is none.
    """
    renamed = tuple(own_forms.parse_fields(options.fields).items())
    tasks: dict[str, Task] = {}
    left_out, notes = [], []
    for stem, splits in _sources(directory, left_out):
        files = tuple(file for paths in splits.values() for file in paths)
        survey = _survey(_stamp(files), renamed)
        if survey.metric is None:
            left_out.append(Skipped(survey.fault.where, f"{survey.fault.reason}; no record of {stem} can be used"))
            continue
        for category in survey.categories or (None,):
            task = _task(stem, category, splits, survey, options, renamed)
            if task.name in tasks:
                raise DataError(f"{files[0]}: the task {task.name} is that of {tasks[task.name].files[0]}; rename one")
            tasks[task.name] = task
            if "train" in splits and task.splits == ("train",) and options.held_out_instances != 0:
                notes.append(f"{task.name}: nothing is held out for evaluation, because it has {survey.size(category)}")
        notes += (f"{files[0]}: {text}" for text in survey.notes())
    if not tasks:
        listed = f" ({left_out[0].where}: {left_out[0].reason})" if left_out else ""
        raise DataError(f"{directory}: no records of the form {FORMS}{listed}")
    return Benchmark(tasks, tuple(left_out), {name: _row(task) for name, task in tasks.items()}, notes=tuple(notes))


def _sources(directory: Path, left_out: list[Skipped]) -> Iterator[tuple[str, dict[str, tuple[Path, ...]]]]:
    """Returns names and splits of the data sets in a folder; a single file is a data set."""
    if directory.is_file():
        if (name := records.stem(directory, SUFFIXES)) is None:
            raise DataError(f"{directory}: not one of {', '.join(SUFFIXES)}")
        yield name, {"train": (directory,)}
        return
    named = records.splits(directory, SUFFIXES)
    if splits := _splits(named, left_out):  # the folder is a single data set
        yield directory.name, splits
        return
    for name, files in named.items():
        yield name, {"train": files}
    for folder in sorted(path for path in directory.iterdir() if path.is_dir() and path.name not in named):
        if splits := _splits(records.splits(folder, SUFFIXES), left_out):
            yield folder.name, splits


def _splits(named: Mapping[str, tuple[Path, ...]], left_out: list[Skipped]) -> dict[str, tuple[Path, ...]]:
    """The splits of a folder by their usual names; none, if its files are data sets of their own."""
    splits: dict[str, tuple[Path, ...]] = {}
    for name, files in named.items():
        if (split := SPLITS.get(name.lower())) is not None:
            splits[split] = (*splits.get(split, ()), *files)
    others = [file for name, files in named.items() if name.lower() not in SPLITS for file in files]
    if others and "train" not in splits:
        return {}
    known = ", ".join(SPLITS)
    left_out += (Skipped(str(file), f"beside a train split, files are splits: {known}") for file in others)
    return {split: splits[split] for split in ("train", "validation", "test") if split in splits}


def _task(
    stem: str,
    category: str | None,
    splits: Mapping[str, tuple[Path, ...]],
    survey: "Survey",
    options: CacheOptions,
    renamed: tuple[tuple[str, str], ...],
) -> Task:
    files = tuple(file for paths in splits.values() for file in paths)
    name = task_name(NAME, stem if category is None else f"{stem}.{category}", ascii_only=False)
    part = _Part(name, category, survey.metric, renamed)
    carves = "train" in splits and "validation" not in splits
    carved = options.held_out_instances if carves else 0
    holds_out = carves and _held_out_count(survey.questions[category], carved) > 0
    return Task(
        name=name,
        benchmark=NAME,
        category=category or category_name(stem) or UNKNOWN,
        source=stem,
        files=files,
        splits=(*splits, *(["validation"] if holds_out else [])),
        templates=(Template("own", survey.metric, output_type=RANK),),
        read=functools.partial(_read, part, splits, carved),
        render=functools.partial(render, name, functools.partial(_shares_instruction, part, _stamp(files))),
        options=options,
        options_used=("held_out_instances", "fields"),
        demonstrations="train" if "train" in splits else next(iter(splits)),
    )


def category_name(text: str) -> str:
    """A category as part of a task's name: as `registry.slug`, with letters of every script and the names of signs."""
    text = "".join(SIGNS.get(letter, letter) for letter in unicodedata.normalize("NFKC", text).lower())
    words = "".join(letter if unicodedata.category(letter)[0] in "LMN" else " " for letter in text).split()
    return "_".join(words or [f"u{ord(letter):x}" for letter in text.strip()])


def _row(task: Task) -> CatalogRow:
    split = "train" if "train" in task.splits else "test"
    return CatalogRow(task.name, NAME, task.category, task.source, split, task.templates[0].metric.name)


def _stamp(files: Sequence[Path]) -> tuple[tuple[Path, int, int], ...]:
    """Returns a key of the state of the files, for caches of their contents."""
    return tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files)


@dataclasses.dataclass(frozen=True)
class Survey:
    """A summary of the files of a data set.

    Attributes:
      metric: of the first usable record; None if there is none.
      fault: the first unusable record, if there is no usable one.
      categories: names of the categories in order of appearance; empty if no record has one.
      questions: number of different questions, by category (None if no record has one).
      unused: number of records in which a field is not read, by field.
    """

    metric: Metric | None
    fault: Skipped
    categories: tuple[str, ...]
    questions: Mapping[str | None, int]
    unused: Mapping[str, int]

    def size(self, category: str | None) -> str:
        """Describes a category of which nothing is held out."""
        count = self.questions[category]
        return f"{count} questions, fewer than {HELD_OUT_SHARE}" if count else "texts without a question"

    def notes(self) -> list[str]:
        """A line about the fields that are not read."""
        fields = [f"{name} ({count:,} records)" for name, count in sorted(self.unused.items())]
        return [f"fields that are not used: {first_few(fields, 20)}"] if fields else []


@functools.lru_cache(maxsize=1024)
def _survey(stamp: tuple[tuple[Path, int, int], ...], renamed: tuple[tuple[str, str], ...]) -> Survey:
    """Reads the files of a data set.

    Raises:
      DataError: it has too many categories.
    """
    files = tuple(file for file, *_ in stamp)
    metric = fault = None
    questions: dict[str, set[int]] = {}  # hashes
    unused: collections.Counter[str] = collections.Counter()
    for record in _records(files, renamed):
        if isinstance(record, Skipped):
            fault = fault or record
            continue
        metric = metric or record.fields["metric"]
        of_category = questions.setdefault(_category(record), set())
        if len(questions) > MOST_CATEGORIES:
            raise DataError(f"{files[0]}: more than {MOST_CATEGORIES:,} categories; is `category` a free text?")
        if _asks(record) and record.fields["metric"] == metric:
            of_category.add(hash(record.fields["question"]))
        unused.update(record.fields["unused"])
    fault = fault or Skipped(str(files[0]), "the file is empty")
    counts: dict[str | None, int] = {name: len(hashes) for name, hashes in questions.items()}
    if questions.keys() <= {UNKNOWN}:
        return Survey(metric, fault, (), {None: counts.get(UNKNOWN, 0)}, unused)
    return Survey(metric, fault, tuple(questions), counts, unused)


@dataclasses.dataclass(frozen=True)
class _Part:
    """The records of one task in the files of a data set.

    Attributes:
      task: its name.
      category: None if the records have none.
      metric: the one that all of them must have.
      renamed: `own_forms.parse_fields`, as pairs.
    """

    task: str
    category: str | None
    metric: Metric
    renamed: tuple[tuple[str, str], ...]

    def records(self, files: Sequence[Path]) -> Iterator[Record | Skipped]:
        """Yields the task's records; unusable records are counted with every category of the file."""
        for record in _records(files, self.renamed):
            if isinstance(record, Record):
                if self.category is not None and _category(record) != self.category:
                    continue
                if record.fields["metric"] != self.metric:
                    what = f"metric {record.fields['metric']}, but {self.metric} in the first record of the file"
                    record = Skipped(record.fields["where"], f"{what}; a task has one")
            yield record

    def draw(self, record: Record) -> int:
        """Records with the same question have the same draw, and are in the same split."""
        return prompts.draw("held out", self.task, record.fields["question"])


@functools.lru_cache(maxsize=4096)
def _last_held_out(part: _Part, stamp: tuple, carved: int | None) -> int:
    """The largest draw of a held-out question, -1 if there is none. `carved`: their number; None: the default."""
    usable = (record for record in part.records([file for file, *_ in stamp]) if isinstance(record, Record))
    distinct = np.unique(np.fromiter((part.draw(record) for record in usable if _asks(record)), np.uint64))
    count = _held_out_count(len(distinct), carved)
    return int(distinct[count - 1]) if count else -1


def _held_out_count(questions: int, carved: int | None) -> int:
    """How many of the different questions of a task are held out."""
    return min(HELD_OUT, questions // HELD_OUT_SHARE) if carved is None else min(carved, questions)


@functools.lru_cache(maxsize=4096)
def _shares_instruction(part: _Part, stamp: tuple) -> bool:
    """Whether all records have the same instruction, after which demonstrations can be inserted."""
    first = None
    for record in part.records([file for file, *_ in stamp]):
        if isinstance(record, Record):
            instruction = record.fields.get("instruction")
            if instruction is None or first not in (None, instruction):
                return False
            first = instruction
    return True


def _category(record: Record) -> str:
    return category_name(record.fields["category"]) if "category" in record.fields else UNKNOWN


def _asks(record: Record) -> bool:
    return record.fields["form"] != TEXT


def _records(files: Sequence[Path], renamed: Sequence[tuple[str, str]]) -> Iterator[Record | Skipped]:
    """Yields every record of the files, with `where` and the fields of `own_forms.read_form`."""
    names = dict(renamed)
    for row in records.read(files):
        if isinstance(row, Skipped):
            yield row
            continue
        try:
            yield Record(str(row.number), {"where": row.where, **own_forms.read_form(row.values, names)})
        except UnusableError as error:
            yield Skipped(row.where, str(error))


def _read(
    part: _Part, splits: Mapping[str, tuple[Path, ...]], carved: int | None, split: str
) -> Iterator[Record | Skipped]:
    """Reads a split. `carved`: number of questions of "train" that form the validation split; None: the default."""
    files = splits.get(split, splits.get("train", ()))
    from_train = split == "train" or split not in splits
    last = _last_held_out(part, _stamp(files), carved) if from_train and carved != 0 else -1
    for record in part.records(files):
        if isinstance(record, Skipped):
            if split in splits:
                yield record
        elif not from_train or (_asks(record) and part.draw(record) <= last) == (split == "validation"):
            # Records are named by their number in the split's files; the prefix tells those of several splits apart.
            named = record if from_train else Record(f"{split}-{record.id}", record.fields)
            yield from [named] if split == "train" else _questions(named)


def _questions(record: Record) -> Iterator[Record | Skipped]:
    """A record as questions: one for each label of a conversation."""
    if not _asks(record):
        yield Skipped(record.fields["where"], "a text asks nothing that could be evaluated")
        return
    if record.fields["form"] != CHAT or len(record.fields["labels"]) == 1:
        yield record
        return
    turns = record.fields["turns"]
    for number, label in enumerate(record.fields["labels"], start=1):
        fields = {"turns": turns[: label + 1], "labels": (label,), "references": (chat.trim(turns[label][1]),)}
        yield Record(f"{record.id}.{number}", {**record.fields, **fields})


def render(
    task: str, shared_instruction: Callable[[], bool], record: Record, template: Template, worded_as: str | None = None
) -> Example:
    """Renders a record: instructions are phrased as in the paper (2.4), prompts, chats and texts are unchanged.

    Args:
      shared_instruction: whether all records of the task have the same instruction.
    """
    fields = record.fields
    if fields["form"] == CHAT:
        return _render_conversation(record)
    target = prompts.pick("reference", task, record.id, fields["references"])
    own_start = 0
    if fields["form"] == INSTRUCTION:
        wording = worded_as or record.id
        texts = fields["instruction"], chat.trim(fields["input"])
        source, own_start = prompts.task_level_source(task, wording, *texts, indented=True)
        own_start = own_start if shared_instruction() else 0
    else:
        source = fields["prompt"] if fields["form"] == PROMPT else ""
    return Example(record.id, source, target, fields["references"], fields["candidates"], input_start=own_start)


def _render_conversation(record: Record) -> Example:
    fields = record.fields
    text, spans = chat.spoken(fields["turns"])
    labels = fields["labels"]
    answers = [chat.trim(fields["turns"][label][1]) for label in labels]
    before = [0, *(spans[label][1] for label in labels)]  # where what is said before each answer begins
    contexts = [text[start : spans[label][0]] for start, label in zip(before, labels)]
    earlier = tuple(zip(contexts[:-1], answers[:-1]))
    source = text[: spans[labels[-1]][0]]
    return Example(record.id, source, answers[-1], fields["references"], fields["candidates"], earlier_turns=earlier)

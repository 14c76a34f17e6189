"""A user's own data: files of rows (`tasks/reading/records.py`), in common formats.

- instruction: `{"instruction", "input", "output"}` (Alpaca) or `{"instruction", "context", "response"}` (Dolly);
- prompt: `{"prompt", "completion"}`, unchanged;
- chat: `{"messages": [{"role", "content"}]}`, or `{"conversations": [{"from", "value"}]}` (ShareGPT). A conversation is
  one training example, in which every turn of the assistant is a label; held out for evaluation, each of these turns is
  a question, after everything that was said before it. A turn of weight 0 is not a label.

A record may also have `candidates` (a list of answers to rank), `references` (further accepted answers),
`metric` (the same in all records of a file) and `category`. A file is a task; a file whose records have categories is
one task per category. A folder with `train.jsonl`, `validation.jsonl`, ... is one task with these splits; without a
validation split, a tenth of the records, at most 100, is held out.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optiml_jax.common.errors import DataError, UserError
from optiml_jax.data.specification import CacheOptions
from optiml_jax.evaluation.metrics import Metric
from optiml_jax.evaluation.prompts.ledger import RANK
from tasks.catalog.registry import Benchmark, CatalogRow, slug, task_name
from tasks.example import Example, Record, Skipped, Template
from tasks.prompting import prompts
from tasks.reading import records
from tasks.reading.fields import UnusableError
from tasks.task import Task

NAME = "jsonl"
OWN_LAYOUT = True  # a data directory without a folder of this name is itself the folder or file
HELD_OUT, HELD_OUT_SHARE = 100, 10  # maximum number of held-out instances, and one in this many
MOST_CATEGORIES = 1000
SPLITS = ("train", "validation", "test")

INSTRUCTION = (("instruction", "input", "output"), ("instruction", "context", "response"))
PROMPT = ("prompt", "completion")
CHAT = (("messages", "role", "content"), ("conversations", "from", "value"))
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
SPOKEN = {"user": "User: ", "assistant": "Assistant: ", "system": ""}
FORMS = '{"instruction", "input", "output"}, {"prompt", "completion"} or {"messages": [{"role", "content"}]}'


def discover(directory: Path, options: CacheOptions) -> Benchmark:
    """Discovers the tasks of a file or folder. Reads the start of every file, and all of a file with categories.

    Raises:
      DataError: there is no readable file.
    """
    tasks: dict[str, Task] = {}
    left_out = []
    for stem, splits in _sources(directory):
        files = tuple(file for paths in splits.values() for file in paths)
        first = next((record for record in _records(files) if isinstance(record, Record)), None)
        if first is None:
            skipped = next(_records(files), Skipped(str(files[0]), "the file is empty"))
            left_out.append(Skipped(skipped.where, f"{skipped.reason}; no record of {stem} can be used"))
            continue
        for category in _categories(_stamp(files)) if "category" in first.fields else (None,):
            task = _task(stem, category, splits, first.fields["metric"], options)
            if task.name in tasks:
                raise DataError(f"{files[0]}: the task {task.name} is that of {tasks[task.name].files[0]}; rename one")
            tasks[task.name] = task
    if not tasks:
        listed = f" ({left_out[0].where}: {left_out[0].reason})" if left_out else ""
        raise DataError(f"{directory}: no records of the form {FORMS}{listed}")
    return Benchmark(tasks, tuple(left_out), {name: _row(task) for name, task in tasks.items()})


def _sources(directory: Path) -> Iterator[tuple[str, dict[str, tuple[Path, ...]]]]:
    """Returns names and splits of the data sets in a folder; a single file is a data set."""
    if directory.is_file():
        if (name := records.stem(directory)) is None:
            raise DataError(f"{directory}: not one of {', '.join(records.SUFFIXES)}")
        yield name, {"train": (directory,)}
        return
    splits = records.splits(directory)
    if set(splits) & set(SPLITS):  # the folder is a single data set
        yield directory.name, splits
        return
    for name, files in splits.items():
        yield name, {"train": files}
    for folder in sorted(path for path in directory.iterdir() if path.is_dir() and path.name not in splits):
        if set(folder_splits := records.splits(folder)) & set(SPLITS):
            yield folder.name, folder_splits


def _task(stem: str, category: str | None, splits: Mapping[str, Any], metric: Metric, options: CacheOptions) -> Task:
    splits = {split: splits[split] for split in SPLITS if split in splits}
    files = tuple(file for paths in splits.values() for file in paths)
    name = task_name(NAME, stem if category is None else f"{stem}.{slug(category)}")
    carved = 0 if "validation" in splits or "train" not in splits else options.held_out_instances
    return Task(
        name=name,
        benchmark=NAME,
        category=slug(stem if category is None else category) or "unknown",
        source=stem,
        files=files,
        splits=tuple(split for split in SPLITS if split in splits or (split == "validation" and carved != 0)),
        templates=(Template("own", metric, output_type=RANK),),
        read=functools.partial(_read, name, splits, category, metric, carved),
        render=functools.partial(render, name, functools.partial(_shares_instruction, _stamp(files), category, metric)),
        options=options,
        options_used=("held_out_instances",),
        demonstrations="train" if "train" in splits else next(iter(splits)),
    )


def _row(task: Task) -> CatalogRow:
    split = "train" if "train" in task.splits else "test"
    return CatalogRow(task.name, NAME, task.category, task.source, split, task.templates[0].metric.name)


def _stamp(files: Sequence[Path]) -> tuple[tuple[Path, int, int], ...]:
    """Returns a key of the state of the files, for caches of their contents."""
    return tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files)


@functools.lru_cache(maxsize=1024)
def _categories(stamp: tuple[tuple[Path, int, int], ...]) -> tuple[str, ...]:
    """Returns the categories of a data set, in order of appearance."""
    files = tuple(file for file, *_ in stamp)
    names: dict[str, str] = {}
    for record in _records(files):
        if isinstance(record, Record):
            names.setdefault(slug(record.fields.get("category", "")) or "unknown", record.fields.get("category", ""))
        if len(names) > MOST_CATEGORIES:
            raise DataError(f"{files[0]}: more than {MOST_CATEGORIES:,} categories; is `category` a free text?")
    return tuple(names)


def _read(
    task: str,
    splits: Mapping[str, tuple[Path, ...]],
    category: str | None,
    metric: Metric,
    carved: int | None,
    split: str,
) -> Iterator[Record | Skipped]:
    """Reads a split. `carved`: number of instances of "train" that form the validation split; None: the default."""
    files = splits.get(split, splits.get("train", ()))
    from_train = split == "train" or split not in splits
    last = _last(task, _stamp(files), category, metric, carved) if from_train and carved != 0 else -1
    for record in _of_task(files, category, metric):
        if isinstance(record, Skipped):
            if split in splits:
                yield record
        elif not from_train or (_draw(task, record) <= last) == (split == "validation"):
            # Records are named by their number in the split's files; the prefix tells those of several splits apart.
            named = record if from_train else Record(f"{split}-{record.id}", record.fields)
            yield from [named] if split == "train" else _questions(named)


def _questions(record: Record) -> Iterator[Record]:
    """A record as questions: one for each label of a conversation."""
    if record.fields["form"] != "chat" or len(record.fields["labels"]) == 1:
        yield record
        return
    turns = record.fields["turns"]
    for number, label in enumerate(record.fields["labels"], start=1):
        fields = {"turns": turns[: label + 1], "labels": (label,), "references": (turns[label][1].strip(),)}
        yield Record(f"{record.id}.{number}", {**record.fields, **fields})


def _of_task(files: Sequence[Path], category: str | None, metric: Metric) -> Iterator[Record | Skipped]:
    """Yields the records of one category; unusable records are counted with every category of the file."""
    for record in _records(files):
        if isinstance(record, Record):
            if category is not None and (slug(record.fields.get("category", "")) or "unknown") != category:
                continue
            if record.fields["metric"] != metric:
                what = f"metric {record.fields['metric']}, but {metric} in the first record of the file"
                record = Skipped(record.fields["where"], f"{what}; a task has one")
        yield record


@functools.lru_cache(maxsize=4096)
def _last(task: str, stamp: tuple, category: str | None, metric: Metric, carved: int | None) -> int:
    """Returns the largest draw of a held-out record. Records with the same question have the same draw and split."""
    records = _of_task([file for file, *_ in stamp], category, metric)
    draws = (_draw(task, record) for record in records if isinstance(record, Record))
    distinct = np.unique(np.fromiter(draws, np.uint64))
    share = min(HELD_OUT, len(distinct) // HELD_OUT_SHARE) if carved is None else min(carved, len(distinct))
    return int(distinct[share - 1]) if share else -1


@functools.lru_cache(maxsize=4096)
def _shares_instruction(stamp: tuple, category: str | None, metric: Metric) -> bool:
    """Whether all records of a task have the same instruction, after which demonstrations can be inserted."""
    first = None
    for record in _of_task([file for file, *_ in stamp], category, metric):
        if isinstance(record, Record):
            instruction = record.fields.get("instruction")
            if instruction is None or first not in (None, instruction):
                return False
            first = instruction
    return True


def _draw(task: str, record: Record) -> int:
    return prompts.draw("held out", task, record.fields["question"])


def _records(files: Sequence[Path]) -> Iterator[Record | Skipped]:
    """Yields every record of the files, in any format.

    A record's fields: `where`, `form`, `question` (which no other split may have), `references`, `candidates`,
    `metric`, `category` if it has one; `instruction` and `input`, `prompt`, or `turns` up to the last answer and the
    indices of those that are `labels`.
    """
    for row in records.read(files):
        if isinstance(row, Skipped):
            yield row
            continue
        try:
            yield Record(str(row.number), {"where": row.where, **_fields(row.values)})
        except UnusableError as error:
            yield Skipped(row.where, str(error))


def _fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record (`_records`)."""
    if (chat := next((names for names in CHAT if names[0] in values), None)) is not None:
        return _conversation(values, *chat)
    if names := next((names for names in INSTRUCTION if names[0] in values and names[2] in values), None):
        instruction, text = _text(values, names[0]), _text(values, names[1], optional=True)
        if not (instruction + text).strip():
            raise UnusableError(f"{names[0]} is empty")
        fields = {
            "form": "instruction",
            "instruction": instruction,
            "input": text,
            "question": f"{instruction}\0{text}",
        }
        return fields | _answers(values, values[names[2]], names[2])
    if all(name in values for name in PROMPT):
        prompt = _text(values, PROMPT[0])
        fields = {"form": "prompt", "prompt": prompt, "question": prompt}
        return fields | _answers(values, values[PROMPT[1]], PROMPT[1])
    raise UnusableError(f"has {', '.join(sorted(values)[:6]) or 'nothing'}, which is none of {FORMS}")


def _conversation(values: Mapping[str, Any], key: str, speaker: str, content_key: str) -> dict[str, Any]:
    """The fields of a conversation. Conversations that open in the same way have the same question, and split."""
    messages = values[key]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UnusableError(f"{key} is no list of objects")
    turns: list[tuple[str, str]] = []
    labels = []
    for message in messages:
        role = message.get(speaker)
        if role not in ROLES:
            raise UnusableError(f"a message of {speaker} {role!r}; known: {', '.join(ROLES)}")
        text = _text(message, content_key)
        if ROLES[role] == "assistant" and turns and message.get("weight", 1) and text.strip():
            labels.append(len(turns))
        turns.append((ROLES[role], text))
    if not labels:
        raise UnusableError("no turn of the assistant to learn")
    fields = {"form": "chat", "turns": tuple(turns[: labels[-1] + 1]), "labels": tuple(labels)}
    return fields | {"question": repr(turns[: labels[0]])} | _answers(values, turns[labels[-1]][1], content_key)


def _answers(values: Mapping[str, Any], output: Any, name: str) -> dict[str, Any]:
    """Returns references, candidates, metric and category of a record."""
    references = [*_list(output, name), *_list(values.get("references") or [], "references")]
    references = list(dict.fromkeys(text.strip() for text in references if text.strip()))
    if not references:
        raise UnusableError(f"{name} is empty")
    candidates = values.get("candidates")
    if candidates is not None:
        candidates = tuple(dict.fromkeys(text.strip() for text in _list(candidates, "candidates")))
        if len(candidates) < 2 or not set(candidates) & set(references):
            raise UnusableError("candidates must be two or more, one of them the output")
    try:
        metric = Metric.parse(values.get("metric") or ("rouge_l" if candidates is None else "accuracy"))
    except UserError as error:
        raise UnusableError(str(error)) from None
    fields = {"references": tuple(references), "candidates": candidates, "metric": metric}
    category = values.get("category")
    if category is not None and not isinstance(category, str):
        raise UnusableError(f"category is {type(category).__name__}, not text")
    return fields | ({} if category is None else {"category": category})


def _text(values: Mapping[str, Any], name: str, optional: bool = False) -> str:
    text = values.get(name)
    if text is None and optional:
        return ""
    if not isinstance(text, str):
        raise UnusableError(f"{name} is {type(text).__name__}, not text" if name in values else f"lacks {name}")
    return text


def _list(value: Any, name: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UnusableError(f"{name} is neither text nor a list of texts")
    return texts


def render(
    task: str, shared_instruction: Callable[[], bool], record: Record, template: Template, worded_as: str | None = None
) -> Example:
    """Renders a record: instructions are phrased as in the paper (2.4), prompts and chats are unchanged.

    Args:
      shared_instruction: whether all records of the task have the same instruction.
    """
    fields = record.fields
    if fields["form"] == "chat":
        return _render_conversation(record)
    target = prompts.pick("reference", task, record.id, fields["references"])
    own_start = 0
    if fields["form"] == "instruction":
        wording = worded_as or record.id
        source, own_start = prompts.task_level_source(task, wording, fields["instruction"], fields["input"])
        own_start = own_start if shared_instruction() else 0
    else:
        source = fields["prompt"]
    return Example(record.id, source, target, fields["references"], fields["candidates"], input_start=own_start)


def _render_conversation(record: Record) -> Example:
    fields = record.fields
    lines = [SPOKEN[role] + text.strip() for role, text in fields["turns"]]
    answers = [fields["turns"][label][1].strip() for label in fields["labels"]]
    sources = ["\n".join([*lines[:label], "Assistant:"]) for label in fields["labels"]]
    ends = [0, *(len(source) + 1 + len(answer) for source, answer in zip(sources, answers))]  # of each answer
    earlier = tuple((source[end:], answer) for source, answer, end in zip(sources[:-1], answers, ends))
    return Example(
        record.id, sources[-1], answers[-1], fields["references"], fields["candidates"], earlier_turns=earlier
    )

"""Super-NaturalInstructions (Wang et al. 2022): one JSON file per task, with a definition and its instances.

Four schemas are read: that of release 2.x (all metadata in lists), the one republished by later benchmarks (keys
missing, `Categories` and `output` plain strings), that of September 2021 (`Definition` a string, no instance ids), and
that of release 1 (`subtaskNNN_*.json`: the definition in three parts, the examples in an object of their own).
Splits come from the official `splits/default/{train,test,excluded}_tasks.txt` beside `tasks/`, or else from the
catalog; `splits/xlingual/test_tasks.txt` names 35 of the excluded ones, which the catalog has as "test_xlingual".
A test task is evaluated on its first 100 instances, which upstream balanced and ordered (`splits/README`), without
shuffling; a mixture that draws it trains on the others. Demonstrations are the positive examples, in order; if there
are fewer than five, instances that are never evaluated follow. Answers are not ranked: Tables 12 and 15 of the paper
report ROUGE-L F1 of generated text.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optiml_jax.common import typed_json
from optiml_jax.common.errors import DataError
from optiml_jax.data.specification import CacheOptions
from optiml_jax.evaluation.metrics import Metric
from tasks.catalog.registry import Benchmark, CatalogRow, MissingError, catalog, slug, task_name
from tasks.example import Example, Record, Skipped, Template
from tasks.prompting import prompts
from tasks.prompting.subsampling import REMEDY
from tasks.task import SHOWN_SPLIT, Task

NAME = "super_natural_instructions"
TEMPLATE = Template("definition", Metric("rouge_l"))  # the instruction is in each file
XLINGUAL = Template("definition", Metric("rouge_l", (("unscorable_exact", True),)))  # rouge-score reads only ASCII
SPLITS = {  # split -> the official list of its tasks; the first list with a task determines its split
    "train": "default/train_tasks.txt",
    "test": "default/test_tasks.txt",
    "test_xlingual": "xlingual/test_tasks.txt",
    "excluded": "default/excluded_tasks.txt",
}
TEST = ("test", "test_xlingual")  # splits whose tasks are evaluated on their first instances
TEST_INSTANCES = 100
WHOLE = "whole"  # a split with all instances that do not serve as demonstrations
SHOWN = 5  # demonstrations: positive examples, then instances if there are fewer
V1_DEFINITION = ("Definition", "Emphasis & Caution", "Things to Avoid")  # "-" if it is empty


def discover(directory: Path, options: CacheOptions) -> Benchmark:
    """Discovers the tasks in `directory`/tasks. Opens only the files of tasks that are not in the catalog."""
    return discover_folder(NAME, directory, options)


def discover_folder(benchmark: str, directory: Path, options: CacheOptions, held_out: int = 0) -> Benchmark:
    """Discovers a folder in the official layout as a benchmark of any name.

    Args:
      held_out: instances per task that become its validation split, unless the options set another number.

    Raises:
      DataError: a task has two files, no split has a task, or a file that is not in the catalog cannot be read.
    """
    held_out = held_out if options.held_out_instances is None else options.held_out_instances
    catalog_rows = catalog(benchmark)
    roles = split_lists(benchmark, directory) or {name: row.split for name, row in catalog_rows.items()}
    paths: dict[str, Path] = {}
    left_out = []
    for path in sorted((directory / "tasks").glob("*.json")):
        name = task_name(benchmark, path.stem)
        if path.stem.startswith("subtask"):  # files of release 1: same number, but not always the same name
            number = task_name(benchmark, path.stem[3:].split("_")[0] + "_")
            name = next((catalog_rows for catalog_rows in roles if catalog_rows.startswith(number)), name)
        if name not in roles:
            left_out.append(Skipped(str(path), "in no split"))
        elif name in paths:
            raise DataError(f"{path}: the same task as {paths[name].name}, both are {name}; remove one")
        else:
            paths[name] = path
    if not paths:
        raise MissingError(
            f"{directory}: no file of a known task in tasks/*.json; the official release has one per task"
        )
    rows = {}
    for name, role in roles.items():
        row = catalog_rows.get(name) or _row(benchmark, name, paths.get(name))
        rows[name] = dataclasses.replace(row, split=role)
    tasks = {name: _task(rows[name], path, held_out, options) for name, path in paths.items()}
    return Benchmark(tasks, tuple(left_out), rows)


def split_lists(benchmark: str, directory: Path) -> dict[str, str]:
    """Maps task names to splits by the lists of the folder; empty if it has none."""
    roles: dict[str, str] = {}
    for role, name_of_list in SPLITS.items():
        path = directory / "splits" / name_of_list
        try:
            lines = path.read_text(encoding="utf-8").split() if path.exists() else ()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 at byte {error.start:,}; fetch the file again") from None
        for line in lines:
            name = task_name(benchmark, line)
            earlier = roles.setdefault(name, role)
            if earlier != role and "test_xlingual" not in (earlier, role):
                raise DataError(f"{path}: {line} is in {earlier}_tasks.txt too; a task has one split")
    return roles


def _row(benchmark: str, name: str, path: Path | None) -> CatalogRow:
    """Returns a catalog row from the file itself; without a file the category is empty."""
    if path is None:
        return CatalogRow(name, benchmark, "", "", "", TEMPLATE.metric.name)
    task = load(path)
    category, source = (_first(task.get(key)) or "" for key in ("Categories", "Source"))
    return CatalogRow(name, benchmark, slug(category) or "unknown", source, "", TEMPLATE.metric.name)


def _task(row: CatalogRow, path: Path, held_out: int, options: CacheOptions) -> Task:
    return Task(
        name=row.name,
        benchmark=row.benchmark,
        category=row.category,
        source=row.source,
        files=(path,),
        splits=("train", *(["validation"] if held_out else []), "test"),
        templates=(XLINGUAL if row.split == "test_xlingual" else TEMPLATE,),
        read=functools.partial(_read, path, row, held_out, options.allow_empty_tasks),
        render=functools.partial(render, row.name),
        options=options,
        options_used=("held_out_instances",),
        may_be_empty=row.split in TEST,
        demonstrations=SHOWN_SPLIT,
        demonstrations_drawn=False,
    )


def load(path: Path) -> dict[str, Any]:
    """Reads a task file.

    Raises:
      DataError: the file is not strict UTF-8, not JSON, or lacks `Definition` or `Instances`.
    """
    try:
        task = typed_json.loads(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start:,}; fetch the file again") from None
    except ValueError as error:
        what = f"not JSON ({error})" if path.stat().st_size else "the file is empty"
        raise DataError(f"{path}: {what}; fetch the file again or remove it") from None
    if not isinstance(task, dict) or not isinstance(task.get("Instances"), list):
        raise DataError(f'{path}: no list "Instances"; is this a Super-NaturalInstructions task?')
    if not isinstance(_first(task.get("Definition")), str):
        raise DataError(f'{path}: no text "Definition"; is this a Super-NaturalInstructions task?')
    if not isinstance(_first(task.get("Categories")), str | None):
        raise DataError(f'{path}: no text in "Categories"; is this a Super-NaturalInstructions task?')
    return task


def _first(value: Any) -> Any:
    """Returns the first value: metadata are lists in the release, plain values in older and republished files."""
    return (value[0] if value else None) if isinstance(value, list) else value


def read(path: Path, allow_empty: bool = False) -> Iterator[Record | Skipped]:
    """Yields the instances of a task file, in file order, for any schema.

    A record's fields: `definition`, `input`, `outputs` (all references, stripped, without repetitions). Instances
    without an id are named by their content; a repeated name gets "#2", "#3", ...

    Raises:
      DataError: the file cannot be read, or it has no instances (unless allowed).
    """
    task = load(path)
    if not task["Instances"] and not allow_empty:
        raise DataError(f'{path}: "Instances" is empty; {REMEDY}')
    definition = _definition(task)
    seen: collections.Counter[str] = collections.Counter()
    for number, instance in enumerate(task["Instances"]):
        fields = _fields(instance)
        if isinstance(fields, str):
            yield Skipped(f"{path}#{number}", fields)
            continue
        name = _id(instance.get("id"), fields)
        seen[name] += 1
        yield Record(f"{name}#{seen[name]}" if seen[name] > 1 else name, {"definition": definition, **fields})


def _definition(task: Mapping[str, Any]) -> str:
    if "Emphasis & Caution" not in task:
        return _first(task["Definition"]).strip()
    parts = (task.get(key) for key in V1_DEFINITION)
    return " ".join(part.strip() for part in parts if isinstance(part, str) and part.strip() not in ("", "-"))


def positive_examples(path: Path) -> Iterator[Record]:
    """Returns the usable positive examples of a task file, as instances."""
    task = load(path)
    nested = task.get("Examples")
    examples = (nested if isinstance(nested, dict) else task).get("Positive Examples")
    for number, example in enumerate(examples if isinstance(examples, list) else ()):
        fields = _fields(example)
        if not isinstance(fields, str):
            yield Record(f"positive{number}", {"definition": _definition(task), **fields})


def _fields(instance: Any) -> dict[str, Any] | str:
    """Returns input and outputs of an instance, or why it cannot be used."""
    if not isinstance(instance, dict):
        return f"the instance is {type(instance).__name__}, not an object"
    text, outputs = instance.get("input"), instance.get("output")
    outputs = [outputs] if isinstance(outputs, str) else outputs
    if not isinstance(text, str):
        return f"input is {type(text).__name__}, not text"
    if not isinstance(outputs, list) or not all(isinstance(output, str) for output in outputs):
        return "output is neither text nor a list of texts"
    outputs = tuple(dict.fromkeys(output.strip() for output in outputs if output.strip()))
    if not outputs:
        return "output is empty"
    try:
        "".join((text, *outputs)).encode()
    except UnicodeEncodeError:
        return "text with half a surrogate pair"
    return {"input": text.strip(), "outputs": outputs}


def _id(name: Any, fields: Mapping[str, Any]) -> str:
    if isinstance(name, str) and name.strip():
        return "_".join(name.split())
    content = "\0".join((fields["input"], *fields["outputs"]))
    return hashlib.blake2b(content.encode(), digest_size=12).hexdigest()


def read_split(path: Path, task: str, held_out: int, allow_empty: bool, split: str) -> Iterator[Record | Skipped]:
    """Yields the records of a split: "test" is the first 100, "validation" `held_out` chosen by id, "train" all others.

    Only instances with a unique input are held out. Unusable instances are counted with "train". "shown" has the
    demonstrations.
    """
    if split == SHOWN_SPLIT:
        shown = list(positive_examples(path))
        others = (record for record in _unasked(path, task, held_out, allow_empty) if isinstance(record, Record))
        yield from [*shown, *itertools.islice(others, max(0, SHOWN - len(shown)))]
        return
    records = read(path, allow_empty)
    if split == "test":
        yield from itertools.islice(records, TEST_INSTANCES)
        return
    records = list(records)
    inputs = collections.Counter(record.fields["input"] for record in records if isinstance(record, Record))
    choice = [r.id for r in records if isinstance(r, Record) and inputs[r.fields["input"]] == 1]
    choice = set(sorted(choice, key=lambda name: prompts.draw("held out", task, name))[:held_out])
    for record in records:
        if (isinstance(record, Record) and record.id in choice) == (split == "validation"):
            yield record


def _read(path: Path, row: CatalogRow, held_out: int, allow_empty: bool, split: str) -> Iterator[Record | Skipped]:
    """Yields the records of a split of a task. The train split of a test task has no input of its first hundred."""
    if split == WHOLE:
        shown = read_split(path, row.name, held_out, allow_empty, SHOWN_SPLIT)
        ids = {record.id for record in shown if isinstance(record, Record)}
        for record in read(path, allow_empty):
            if isinstance(record, Skipped) or record.id not in ids:
                yield record
        return
    records = read_split(path, row.name, held_out, allow_empty, split)
    if split != "train" or row.split not in TEST:
        yield from records
        return
    first = read_split(path, row.name, held_out, allow_empty, "test")
    evaluated = {record.fields["input"] for record in first if isinstance(record, Record)}
    for record in records:
        if isinstance(record, Skipped) or record.fields["input"] not in evaluated:
            yield record


def _unasked(path: Path, task: str, held_out: int, allow_empty: bool) -> Iterator[Record | Skipped]:
    """Yields the instances after the first hundred, which are never evaluated."""
    first = {
        record.id for record in read_split(path, task, held_out, allow_empty, "test") if isinstance(record, Record)
    }
    for record in read_split(path, task, held_out, allow_empty, "train"):
        if isinstance(record, Record) and record.id not in first:
            yield record


def render(
    task: str,
    record: Record,
    template: Template,
    worded_as: str | None = None,
    candidates: tuple[str, ...] | None = None,
) -> Example:
    """Renders an instance (paper 2.4); the target is one of the references, chosen by the instance's id."""
    fields = record.fields
    source, own_start = prompts.task_level_source(task, worded_as or record.id, fields["definition"], fields["input"])
    target = prompts.pick("reference", task, record.id, fields["outputs"])
    return Example(record.id, source, target, fields["outputs"], candidates, input_start=own_start)

"""PromptSource (Bach et al. 2022): Jinja templates over the rows of data sets; a task is a template file.

`templates/<data set>/[<subset>/]templates.yaml` as in the official repository (the paper pins 0cc4b0c), and beside it
the rows, `rows/<data set>/[<subset>/]<split>.jsonl` or any other file of `tasks/reading/records.py`, with the field
names and integer labels of `datasets`. The text of a template before the triple bar is the source, the text after it
the target; `answer_choices` is a template too. Templates that alter the original task, according to their metadata, are
left out (paper 2.4) unless `catalog/templates.tsv` keeps them. Examples with an empty target, to which the template
does not apply or whose label is hidden, are left out too.
"""

import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from optiml_jax.common.errors import DataError
from optiml_jax.data.specification import CacheOptions
from optiml_jax.evaluation.metrics import Metric
from optiml_jax.evaluation.prompts.ledger import GENERATE, RANK
from tasks.catalog.registry import Benchmark, CatalogRow, MissingError, catalog, reviewed_templates, task_name
from tasks.example import Example, Record, Skipped, Template
from tasks.prompting import jinja_sandbox, prompts
from tasks.reading import records
from tasks.task import Task

NAME = "promptsource"
FILE = "templates.yaml"
BAR = "|||"
PROTECTED = "3ed2dface8203c4c9dfb1a5dc58e41e0"  # replaces a bar in the data while a text is split (upstream's name)
MAX_FILE = 4 << 20
TRUNCATED = 2048  # characters to which T0 truncates a field
# Metrics of templates that are ours too; the paper scores every other one by ROUGE-L F1 of generated text (Table 15).
# What `datasets` calls the splits of these three kinds.
SPLITS = {"train": ("train",), "validation": ("validation", "dev"), "test": ("test",)}
ROUND = re.compile(r"(train|dev|test)_r\d")
TRIED = 3  # rows on which a template is tested before it is used
SCARCE = ("turk",)  # data sets whose evaluations keep templates that do not apply to all examples (paper A.1)


class PromptTemplate(NamedTuple):
    """A template of a file. `choices`: jinja of the answers to rank, or None."""

    id: str
    jinja: str
    choices: str | None
    original_task: bool
    metrics: tuple[str, ...]


def discover(directory: Path, options: CacheOptions) -> Benchmark:
    """Discovers the template files that have rows, and parses only those.

    Raises:
      MissingError: there are no templates.
    """
    catalog_rows = catalog(NAME)
    root = next((path for path in (directory / "templates", directory / NAME / "templates") if path.is_dir()), None)
    if root is None:
        remedy = "copy promptsource/templates of github.com/bigscience-workshop/promptsource there"
        raise MissingError(f"{directory}: no folder templates; {remedy}")
    tasks, left_out, rows = {}, [], dict(catalog_rows)
    for path in sorted(root.rglob(FILE)):
        name_path = path.parent.relative_to(root)
        folder = directory / "rows" / name_path
        if not folder.is_dir() or not (available := records.splits(folder)):
            continue
        try:
            templates = load(path)
        except DataError as error:
            line, _, reason = str(error).removeprefix(f"{path}").partition(": ")
            left_out.append(Skipped(f"{path}{line}", reason))
            continue
        name = task_name(NAME, "__".join(name_path.parts))
        by_kind = _by_kind(available)
        usable, dropped = _usable(path, name_path, templates, by_kind, options)
        left_out += dropped
        if not usable:
            left_out.append(Skipped(str(path), "no template of the original task"))
            continue
        row = catalog_rows.get(name) or CatalogRow(name, NAME, "unknown", str(name_path), "train", *scoring(usable))
        rows[name] = row
        tasks[name] = _task(row, path, by_kind, usable, options)
    return Benchmark(tasks, tuple(left_out), rows)


def _by_kind(available: Mapping[str, tuple[Path, ...]]) -> dict[str, tuple[Path, ...]]:
    """Groups files into "train", "validation" and "test", each with all splits of that kind (train_r1,
    validation_matched).

    The rounds of ANLI are also separate splits, because they are evaluated separately.
    """
    kinds: dict[str, tuple[Path, ...]] = {}
    for kind, stems in SPLITS.items():
        files = [path for split, paths in available.items() if split.split("_")[0] in stems for path in paths]
        if files:
            kinds[kind] = tuple(files)
    rounds = {split: files for split, files in available.items() if ROUND.fullmatch(split)}
    return kinds | rounds


class _Loader(yaml.CSafeLoader):
    """Loads YAML's safe types and PromptSource's two tags as data. Refuses merge keys, which can expand without
    bound."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "a merge key", key.start_mark)
        super().flatten_mapping(node)


for _tag in ("!Template", "!TemplateMetadata"):
    _Loader.add_constructor(_tag, lambda loader, node: loader.construct_mapping(node, deep=True))


@functools.cache
def _load(path: Path, stamp: tuple[int, int]) -> tuple[PromptTemplate, ...]:
    try:
        content = yaml.load(path.read_bytes().decode("utf-8"), Loader=_Loader)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start:,}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", error)).split())
        raise DataError(f"{path}{where}: not YAML of templates ({reason})") from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: not YAML of templates ({type(error).__name__})") from None
    templates = content.get("templates") if isinstance(content, dict) else None
    if not isinstance(templates, dict):
        raise DataError(f"{path}: no mapping templates")
    by_name: dict[str, PromptTemplate] = {}
    for key, fields in templates.items():
        template = _template(str(key), fields)
        if template is None:
            raise DataError(f"{path}: template {key} has no texts name and jinja")
        by_name[template.id if template.id not in by_name else f"{template.id} {key}"] = template
    return tuple(template._replace(id=name) for name, template in by_name.items())


def load(path: Path) -> tuple[PromptTemplate, ...]:
    """Reads the templates of a file.

    Raises:
      DataError: the file is not UTF-8 or YAML, has other tags, or has no templates; names file and line.
    """
    status = path.stat()
    if status.st_size > MAX_FILE:
        raise DataError(f"{path}: {status.st_size:,} bytes; a template file has some thousand")
    return _load(path, (status.st_mtime_ns, status.st_size))


def _template(key: str, fields: Any) -> PromptTemplate | None:
    if not isinstance(fields, dict) or not isinstance(fields.get("jinja"), str):
        return None
    metadata = fields.get("metadata") if isinstance(fields.get("metadata"), dict) else {}
    metrics = metadata.get("metrics")
    metrics = tuple(map(str, metrics)) if isinstance(metrics, list) else ()
    name = " ".join(str(fields.get("name") or key).replace("/", "_").split())
    choices = fields.get("answer_choices")
    return PromptTemplate(
        name, fields["jinja"], str(choices) if choices else None, bool(metadata.get("original_task")), metrics
    )


def scoring(templates: Sequence[PromptTemplate]) -> tuple[str, str]:
    """Returns metric and output type of a task: accuracy of ranked answers if most templates name that metric and have
    answers to rank, otherwise ROUGE-L of generated ones."""
    ranked = sum("Accuracy" in template.metrics and template.choices is not None for template in templates)
    return ("accuracy", RANK) if 2 * ranked > len(templates) else ("rouge_l", GENERATE)


def _usable(
    path: Path,
    name_path: Path,
    templates: Sequence[PromptTemplate],
    splits: Mapping[str, tuple[Path, ...]],
    options: CacheOptions,
) -> tuple[list[PromptTemplate], list[Skipped]]:
    """Returns the usable templates, and those that fail to compile or time out on the first rows.

    A template that times out would otherwise cost a second for each of a hundred thousand rows.
    """
    usable, dropped = [], []
    decisions = reviewed_templates(NAME)
    first = [record for split in splits for record in itertools.islice(_read(splits, split), TRIED)]
    first = [record.fields["row"] for record in first if isinstance(record, Record)]
    for template in templates:
        decision, _ = decisions.get(
            f"{name_path.as_posix()}/{template.id}", ("keep" if template.original_task else "drop", "")
        )
        if decision == "keep" or options.all_templates:
            try:
                _compiled(template, options.t0_truncation)
                for row in first:
                    _check_that_it_ends(template, options.t0_truncation, row)
                usable.append(template)
            except jinja_sandbox.TemplateError as error:
                dropped.append(Skipped(f"{path}#{template.id}", f"template left out: {error}"))
    return usable, dropped


def _check_that_it_ends(template: PromptTemplate, truncate: bool, row: Mapping[str, Any]) -> None:
    try:
        _rendered(template, truncate, row, 0)
    except jinja_sandbox.EndlessError:
        raise
    except jinja_sandbox.TemplateError:
        pass  # a fault of this row, which is reported when it is rendered


@functools.cache
def _compiled(
    template: PromptTemplate, truncate: bool
) -> tuple[jinja_sandbox.JinjaTemplate, jinja_sandbox.JinjaTemplate | None, list | None]:
    """Compiles template and answers; returns the answers themselves if they are the same for every row."""
    text = template.jinja
    if truncate:  # like upstream's `apply`, by substitution in the template's text
        text = text.replace("}}", f" | string | truncate({TRUNCATED}) }}}}")
    if template.choices is None:
        return jinja_sandbox.JinjaTemplate(text), None, None
    choices = jinja_sandbox.JinjaTemplate(template.choices)
    return jinja_sandbox.JinjaTemplate(text), choices, _parts(choices.render({})) if choices.constant else None


def _task(
    row: CatalogRow,
    path: Path,
    splits: Mapping[str, tuple[Path, ...]],
    templates: Sequence[PromptTemplate],
    options: CacheOptions,
) -> Task:
    by_id = {template.id: template for template in templates}
    return Task(
        name=row.name,
        benchmark=NAME,
        category=row.category,
        source=row.source,
        files=(path, *(file for files in splits.values() for file in files)),
        splits=tuple(splits),
        templates=tuple(
            Template(template.id, Metric(row.metric), output_type=row.output_type) for template in templates
        ),
        read=functools.partial(_read, splits),
        render=functools.partial(render, row.name, by_id, options.t0_truncation),
        options=options,
        options_used=("all_templates", "t0_truncation"),
        demonstrations="train" if "train" in splits else next(iter(splits), "train"),
    )


def _read(splits: Mapping[str, tuple[Path, ...]], split: str) -> Iterator[Record | Skipped]:
    """Yields the rows of a split; a record's fields are `where` and `row`."""
    for row in records.read(splits.get(split, ())):
        if isinstance(row, Skipped):
            yield row
        elif "answer_choices" in row.values:
            yield Skipped(row.where, "a field answer_choices, which templates mean something else by")
        else:
            values = {key.replace("-", "_"): value for key, value in row.values.items()}
            yield Record(str(row.number), {"where": row.where, "row": values})


def render(
    task: str,
    templates: Mapping[str, PromptTemplate],
    truncate: bool,
    record: Record,
    template: Template,
    worded_as: str | None = None,
) -> Example | Skipped:
    """Renders a row with a template. Random choices are determined by row and template."""
    prompt_template = templates[template.id]
    where, row = f"{record.fields['where']} by template {prompt_template.id}", record.fields["row"]
    text, choices, _ = _compiled(prompt_template, truncate)
    names = text.names | choices.names if choices else text.names
    if missing := names - row.keys() - {"answer_choices"}:
        return Skipped(where, f"the row has no field {min(missing)}")
    try:
        parts, answers = _rendered(
            prompt_template, truncate, row, prompts.draw("choice", task, f"{record.id}/{prompt_template.id}")
        )
    except jinja_sandbox.TemplateError as error:
        return Skipped(where, str(error))
    if len(parts) != 2 or not all(parts):
        return Skipped(where, "no source" if len(parts) == 2 and parts[1] else "no target")
    source, target = parts
    ranked = template.output_type == RANK and answers and target in answers and len(set(answers)) > 1
    candidates = tuple(dict.fromkeys(answers)) if ranked else None
    source = prompts.with_delimiter(task, worded_as or record.id, source)
    return Example(record.id, source, target, (target,), candidates)


def _rendered(
    template: PromptTemplate, truncate: bool, row: Mapping[str, Any], seed: int
) -> tuple[list[str], list[str] | None]:
    """Returns the parts of the text, and the answers to rank."""
    text, choices, answers = _compiled(template, truncate)
    row = {key: value.replace(BAR, PROTECTED) if isinstance(value, str) else value for key, value in row.items()}
    if choices and answers is None:
        answers = [part.strip() for part in choices.render(row, seed).split(BAR)]
    parts = _parts(text.render({**row, "answer_choices": answers}, seed))
    return parts, answers and [answer.replace(PROTECTED, BAR) for answer in answers]


def _parts(text: str) -> list[str]:
    return [part.replace(PROTECTED, BAR).strip() for part in text.split(BAR)]


def applicable(task: Task, split: str) -> tuple[str, ...]:
    """Returns the templates that apply to every example of a split, for evaluations (paper A.1), except for `SCARCE`.

    Rows to which no template applies do not count. If no template applies to all others, all are returned.
    """
    templates = tuple(template.id for template in task.templates)
    if task.source in SCARCE:
        return templates
    fitting = [
        {template.id for template in task.templates if isinstance(task.render(record, template), Example)}
        for record in task.read(split)
        if isinstance(record, Record)
    ]
    common = set(templates).intersection(*filter(None, fitting))
    return tuple(name for name in templates if name in common) or templates

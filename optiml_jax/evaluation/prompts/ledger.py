"""The prompt ledger, format 2: JSON lines, one evaluation prompt each, written by the benchmark half of the project.

A ledger contains all that an evaluation needs, so that the engine knows no benchmark: text, candidates, references,
metric, and where the score counts (category, level, shots). `<suite>.about.json` beside `<suite>.jsonl` holds its
checksum and metadata of its writer, such as the coverage.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import msgspec

from optiml_jax.common import typed_json
from optiml_jax.common.errors import DataError, EmptyLedgerError, UserError, nearest
from optiml_jax.common.files import atomic, copy_atomically, write_atomically
from optiml_jax.common.typed_json import Count
from optiml_jax.data.manifest import Coverage
from optiml_jax.evaluation.metrics import Metric

FORMAT = 2
RANK, GENERATE = "rank", "generate"  # output types: choose among candidates, or write an answer
LEVELS = ("fully_held_out", "held_out_task", "held_out_instances")  # paper section 2.3, hardest first
TASK_FIELDS = ("metric", "level", "category", "benchmark", "group", "pooled")  # equal in all prompts of a task


@dataclasses.dataclass(frozen=True)
class Prompt:
    """An evaluation prompt. Candidates and references are plain texts; `prompt` ends with its delimiter.

    Attributes:
      suite, benchmark, task, template, example_id, shots, seed: the address of the prompt.
      level: one of `LEVELS`, or None: the task counts only for its category.
      candidates: ranked by the model, at least one of them a reference; None where the answer is generated.
      demonstration_ids: of the examples shown before the prompt.
      group: tasks of one group are averaged before their category: parts of a task (57 subjects: "mmlu"), or the same
        task in several benchmarks. None: the task stands alone.
      separator: between prompt and answer; one space, unless the prompt ends in white space.
      stop: texts that end a generated answer and are excluded from it.
      max_new_tokens: of a generated answer; None: the evaluation's limit.
      given: length in characters of each candidate's given prefix, which is read but not scored: "the trophy" of "the
        trophy is too large.", so that candidates are compared by their common rest (partial scoring of Winograd
        schemas, Brown et al. 2020, Figure G.13). Empty: candidates are scored whole.
      part_of: where several prompts make up one question, its name in the task. The question counts once, and as
        correct when all its parts are (MultiRC, Brown et al. 2020, Figure G.15).
      contaminated: whether the prompt shares a 13-gram with the training data (`tools/find_overlap.py`); None: unknown.
      split: of the data set, such as "test"; None: unknown. A task with a test split is evaluated on it, and validated
        on its other prompts.
      pooled: whether the score of the task is the mean over its prompts of all templates (paper 4.1), rather than over
        the means of its templates (Tables 10 and 11).
      demonstration_spans: [start, end] of each demonstration in `prompt`, from the left. A prompt too long for the
        model loses demonstrations one by one before anything else.
    """

    suite: str
    benchmark: str
    task: str
    template: str
    example_id: str
    shots: Count
    seed: Count
    category: str
    level: str | None
    metric: Metric
    prompt: str
    candidates: tuple[str, ...] | None
    references: tuple[str, ...]
    demonstration_ids: tuple[str, ...] = ()
    group: str | None = None
    separator: str = " "
    stop: tuple[str, ...] = ()
    max_new_tokens: Count | None = None
    demonstration_spans: tuple[tuple[int, int], ...] = ()
    given: tuple[Count, ...] = ()
    part_of: str | None = None
    contaminated: bool | None = None
    split: str | None = None
    pooled: bool = False

    @property
    def output_type(self) -> str:
        """`RANK` if the model chooses among candidates, `GENERATE` if it writes the answer."""
        return GENERATE if self.candidates is None else RANK

    @functools.cached_property
    def id(self) -> str:
        """Address of the prompt: suite/task/template/example/shots/seed."""
        return "/".join(map(str, (self.suite, self.task, self.template, self.example_id, self.shots, self.seed)))

    @classmethod
    def parse(cls, text: str) -> "Prompt":
        """Parses one line of a ledger. Errors do not name the file and line; the caller adds them.

        Raises:
          DataError: the JSON is malformed or has another format; fields are missing, unknown or invalid; the metric is
            unknown; there are no references, no candidates, or no candidate that is a reference.
        """
        try:
            line = typed_json.decode(text)
        except ValueError as error:
            raise DataError(str(error)) from None
        if not isinstance(line, dict):
            raise DataError("not a JSON object")
        if line.pop("format", None) != FORMAT:
            remedy = "write it again with python -m tools.cache_tasks --suite=NAME"
            raise DataError(f"not a line of ledger format {FORMAT}, which this version reads; {remedy}")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
        if missing := sorted(required - line.keys()):
            raise DataError(f"lacks {', '.join(missing)}")
        if unknown := sorted(line.keys() - fields):
            raise DataError(f'unknown field "{unknown[0]}"{nearest(unknown[0], fields)}')
        try:
            prompt = msgspec.convert(line | {"metric": Metric.parse(line["metric"])}, cls)
        except msgspec.ValidationError as error:
            raise DataError(typed_json.reason(error)) from None
        except UserError as error:  # of the metric
            raise DataError(str(error)) from None
        if prompt.level not in (None, *LEVELS):
            raise DataError(f"unknown level {prompt.level!r}; known: {', '.join(LEVELS)} or null")
        if not prompt.references:
            raise DataError(f"prompt {prompt.id}: no references")
        if prompt.candidates is not None and not prompt.candidates:
            raise DataError(f"prompt {prompt.id}: empty candidate list; null means that the answer is generated")
        if prompt.candidates is not None and not set(prompt.candidates) & set(prompt.references):
            raise DataError(f"prompt {prompt.id}: no candidate is a reference, so no answer can be correct")
        if "" in prompt.stop:
            raise DataError(f"prompt {prompt.id}: an empty text in stop would end every answer at once")
        if prompt.given:
            prefixes = list(zip(prompt.given, prompt.candidates or ()))
            if len(prompt.candidates or ()) != len(prompt.given) or any(count >= len(text) for count, text in prefixes):
                raise DataError(
                    f"prompt {prompt.id}: given must be one number per candidate, each less than the candidate's length"
                )
        ends = [0, *itertools.chain.from_iterable(prompt.demonstration_spans), len(prompt.prompt)]
        if ends != sorted(ends):
            raise DataError(f"prompt {prompt.id}: demonstration_spans are not in order, or not in the prompt")
        return prompt

    def without(self, count: int) -> str:
        """The text without its first `count` demonstrations."""
        removed = self.demonstration_spans[:count]
        return self.prompt[: removed[0][0]] + self.prompt[removed[-1][1] :] if removed else self.prompt

    def line(self) -> str:
        """The prompt as a line of a ledger, with its line break."""
        fields = {name: value for name, value in vars(self).items() if name != "id"}  # the property's cache
        return json.dumps({"format": FORMAT, **fields, "metric": self.metric.to_json()}, ensure_ascii=False) + "\n"


def ledger_file(path: str | Path) -> Path:
    """Returns the ledger: `path`, or the only .jsonl file of the directory `path`.

    Raises:
      DataError: there is no ledger, or several to choose from.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.jsonl"))
        if len(files) != 1:
            names = ", ".join(file.name for file in files)
            raise DataError(f"{path}: {f'holds {names}: choose one' if files else 'holds no .jsonl ledger'}")
        return files[0]
    if not path.is_file():
        command = "python -m tools.cache_tasks --suite=SUITE --data_dir=DATA --cache_dir=CACHE"
        if path.parent.name == "ledgers":  # the suite's, in the folder of a store
            command = command.replace("SUITE", path.stem).replace("CACHE", str(path.parent.parent))
        close = nearest(path.stem, [file.stem for file in path.parent.glob("*.jsonl")])
        raise DataError(f"{path}: no such ledger; write it with {command}{close}")
    return path


def read_ledger(path: str | Path) -> list[Prompt]:
    """Reads the prompts of a ledger, in file order.

    Args:
      path: the .jsonl file, or a directory that contains exactly one.

    Raises:
      DataError: as `file:line: reason`: a line that `Prompt.parse` refuses, a duplicate id, or prompts of one task that
        disagree about the task. Or the file does not match its checksum (`about_file`).
    """
    file = ledger_file(path)
    prompts, seen, tasks, digest = [], {}, {}, hashlib.sha256()
    with file.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            digest.update(raw)
            if not raw.strip():
                continue
            try:
                prompt = Prompt.parse(raw.decode("utf-8"))
                if prompt.id in seen:
                    raise DataError(f"prompt {prompt.id} is already in line {seen[prompt.id]}")
                _check_agreement(prompt, tasks.setdefault(prompt.task, prompt), seen)
            except UnicodeDecodeError:
                raise DataError(f"{file}:{number}: not UTF-8") from None
            except DataError as error:
                raise DataError(f"{file}:{number}: {error}") from None
            seen[prompt.id] = number
            prompts.append(prompt)
    if about(file).get("sha256") not in (None, digest.hexdigest()):
        remedy = f"cache again, or remove {about_file(file)} if it was changed on purpose"
        raise DataError(f"{file}: its checksum differs; {remedy}")
    if not prompts:
        raise EmptyLedgerError(f"{file}: the ledger is empty: nothing is held out of what is trained on")
    return prompts


def with_prompts(paths: Sequence[str]) -> list[str]:
    """The ledgers that are not empty; all, if all are empty."""
    return [path for path in paths if ledger_file(path).stat().st_size] or list(paths)


def read_ledgers(paths: Sequence[str | Path]) -> list[Prompt]:
    """Reads the prompts of several suites.

    Raises:
      DataError: as `read_ledger`; or two ledgers contain the same task, whose scores would be mixed.
    """
    prompts, files = [], {}
    for path in paths:
        for prompt in read_ledger(path):
            if (other := files.setdefault(prompt.task, path)) != path:
                raise DataError(f"{path}: task {prompt.task} is in {other} too; evaluate them separately")
            prompts.append(prompt)
    return prompts


def suite_of(path: str | Path) -> str:
    """The suite of a ledger that can be read."""
    with ledger_file(path).open(encoding="utf-8") as lines:
        return Prompt.parse(next(line for line in lines if line.strip())).suite


def _check_agreement(prompt: Prompt, first: Prompt, lines: Mapping[str, int]) -> None:
    """Checks that a prompt describes its task as the task's first prompt does: a mean over two metrics means
    nothing."""
    for field in TASK_FIELDS:
        value, expected = getattr(prompt, field), getattr(first, field)
        if value != expected:
            raise DataError(f"task {prompt.task} has {field} {value} here and {expected} in line {lines[first.id]}")


def about_file(ledger: Path) -> Path:
    """Path of a ledger's metadata. Hand-written ledgers may have none."""
    return ledger.with_name(f"{ledger.stem}.about.json")


class About(TypedDict):
    """The metadata of a ledger."""

    checksum: NotRequired[str]
    sha256: NotRequired[str]
    coverage: NotRequired[Coverage | None]
    dropped: NotRequired[list[str]]
    prompts_per_task: NotRequired[int | None]
    trained_as: NotRequired[dict[str, list[str]]]
    related: NotRequired[dict[str, list[str]]]
    without_demonstrations: NotRequired[list[str]]


def about(path: str | Path) -> About:
    """Reads the metadata of a ledger; empty if there are none.

    Raises:
      DataError: the file is damaged.
    """
    file = about_file(ledger_file(path))
    try:
        content = typed_json.read(file, About, "cache again")
    except FileNotFoundError:
        return {}
    if content.pop("checksum", None) not in (None, typed_json.checksum(content)):
        raise DataError(f"{file}: its checksum differs; cache again")
    return content


def write_ledger(path: str | Path, prompts: Iterable[Prompt], metadata: Mapping[str, Any]) -> int:
    """Writes a ledger and its metadata.

    Args:
      metadata: JSON values beside the checksum, such as "coverage" (`data.manifest.Coverage`).

    Returns:
      Number of prompts.

    Raises:
      DataError: a text cannot be written as UTF-8.
    """
    path, digest, count = Path(path), hashlib.sha256(), 0
    about_file(path).unlink(missing_ok=True)
    with atomic(path) as file:
        for prompt in prompts:
            count += 1
            try:
                line = prompt.line().encode()
            except UnicodeEncodeError:
                raise DataError(f"prompt {prompt.id}: text with half a surrogate pair, which is no character") from None
            digest.update(line)
            file.write(line)
    content = json.loads(json.dumps({"sha256": digest.hexdigest(), **metadata}))
    content["checksum"] = typed_json.checksum(content)
    write_atomically(about_file(path), json.dumps(content, indent=1) + "\n")
    return count


def copy_ledger(source: Path, target: Path) -> None:
    """Copies a ledger and its metadata. A reader may see the new ledger without metadata, never with those of the
    old."""
    about_file(target).unlink(missing_ok=True)
    copy_atomically(source, target)
    copy_atomically(about_file(source), about_file(target))

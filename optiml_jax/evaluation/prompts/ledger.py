"""The prompt ledger, format 2: JSON lines, one evaluation prompt each. The benchmark half writes it through this file.

A ledger says everything an evaluation needs to know about a prompt, so that the engine never knows a benchmark:
the text, the candidates or none, the references, the metric, and where the score counts (category, level, shots).
Beside `<suite>.jsonl` lies `<suite>.about.json`: its checksum and what its writer says of it, such as the coverage.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optiml_jax.common.errors import DataError, UserError, nearest
from optiml_jax.common.files import atomic, write_atomically
from optiml_jax.evaluation.metrics import Metric

FORMAT = 2
LEVELS = ("fully_held_out", "held_out_task", "held_out_instances")  # paper section 2.3, hardest first
OF_A_TASK = ("metric", "level", "category", "benchmark", "group")  # the same in all prompts of a task


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One evaluation prompt. Candidates and references are bare texts; `prompt` ends with its delimiter.

    Attributes:
      suite, benchmark, task, template, example_id, shots, seed: what it is addressed by.
      level: one of `LEVELS`, or None: it counts for its category alone.
      candidates: None where the answer is generated; otherwise the model ranks them and one of them is a reference.
      demonstration_ids: of the examples shown before it.
      group: what the task is a part of (57 subjects: "mmlu") or is known as in several benchmarks: parts are averaged
        before the category. None: it stands alone.
      separator: between prompt and answer; one space, unless the prompt ends in white space itself.
      stop: texts that end a generated answer and do not belong to it.
      max_new_tokens: of a generated answer; None: as many as the evaluation allows.
      given: of each candidate, how many characters at its start are told and not scored: "the trophy" of "the trophy is
        too large.", so that what is compared is how well the rest follows (the partial scoring of Winograd schemas of
        Brown et al. 2020, Figure G.13). Empty: all of a candidate is scored.
      part_of: where several prompts ask one question, its name in the task: it counts once, and as right when all are
        (MultiRC, Brown et al. 2020, Figure G.15).
      contaminated: whether it shares a 13-gram with what is trained on (`tools/find_overlap.py`); None: not known.
      demonstration_spans: [start, end] of each demonstration in `prompt`, from the left. What is too long for the model
        loses them one by one before it loses anything else.
    """

    suite: str
    benchmark: str
    task: str
    template: str
    example_id: str
    shots: int
    seed: int
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
    max_new_tokens: int | None = None
    demonstration_spans: tuple[tuple[int, int], ...] = ()
    given: tuple[int, ...] = ()
    part_of: str | None = None
    contaminated: bool | None = None

    @functools.cached_property
    def id(self) -> str:
        """Its address: suite/task/template/example/shots/seed."""
        return "/".join(map(str, (self.suite, self.task, self.template, self.example_id, self.shots, self.seed)))

    @classmethod
    def parse(cls, text: str) -> "Prompt":
        """One line of a ledger. The errors do not name the file and line; the caller does.

        Raises:
          DataError: malformed JSON, another format, missing, unknown or wrong fields, an unknown metric, no references,
            no candidates or none that is a reference.
        """
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"not JSON ({error.msg})") from None
        if not isinstance(line, dict):
            raise DataError("not a JSON object")
        if line.pop("format", None) != FORMAT:
            way_out = "write it again with python -m tools.cache_tasks --suite=NAME"
            raise DataError(f"not a line of ledger format {FORMAT}, which this version reads; {way_out}")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
        if missing := sorted(required - line.keys()):
            raise DataError(f"lacks {', '.join(missing)}")
        if unknown := sorted(line.keys() - fields):
            raise DataError(f'unknown field "{unknown[0]}"{nearest(unknown[0], fields)}')
        prompt = cls(**{name: _value(name, value, fields[name].type) for name, value in line.items()})
        if prompt.level not in (None, *LEVELS):
            raise DataError(f"unknown level {prompt.level!r}; known: {', '.join(LEVELS)} or null")
        if not prompt.references:
            raise DataError(f"prompt {prompt.id}: no references")
        if prompt.candidates is not None and not prompt.candidates:
            raise DataError(f"prompt {prompt.id}: empty candidate list; null means that the answer is generated")
        if prompt.candidates is not None and not set(prompt.candidates) & set(prompt.references):
            raise DataError(f"prompt {prompt.id}: no candidate is a reference, so no answer can be right")
        if prompt.given:
            told = list(zip(prompt.given, prompt.candidates or ()))
            if len(prompt.candidates or ()) != len(prompt.given) or any(count >= len(text) for count, text in told):
                raise DataError(
                    f"prompt {prompt.id}: given must be one number a candidate, and leave some of it to score"
                )
        ends = [0, *itertools.chain.from_iterable(prompt.demonstration_spans), len(prompt.prompt)]
        if ends != sorted(ends):
            raise DataError(f"prompt {prompt.id}: demonstration_spans are not in order, or not in the prompt")
        return prompt

    def without(self, count: int) -> str:
        """The text without its first `count` demonstrations."""
        gone = self.demonstration_spans[:count]
        return self.prompt[: gone[0][0]] + self.prompt[gone[-1][1] :] if gone else self.prompt

    def line(self) -> str:
        """As it stands in a ledger, with its line break."""
        fields = {name: value for name, value in vars(self).items() if name != "id"}  # the property's cache
        return json.dumps({"format": FORMAT, **fields, "metric": self.metric.to_json()}, ensure_ascii=False) + "\n"


def _value(name: str, value: Any, kind: Any) -> Any:
    """A field's value as the dataclass holds it; `kind` is its annotation."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and types.NoneType in kinds:
        return None
    kind, null = kinds[0], " or null" * (types.NoneType in kinds)
    if kind is Metric:
        try:
            return Metric.parse(value)
        except UserError as error:
            raise DataError(str(error)) from None
    if kind is str:
        if not isinstance(value, str):
            raise DataError(f'"{name}" must be a text{null}, got {value!r}')
        return value
    if kind is bool:
        if type(value) is not bool:
            raise DataError(f'"{name}" must be true or false{null}, got {value!r}')
        return value
    if kind is int:
        if type(value) is not int or value < 0:
            raise DataError(f'"{name}" must be a whole number from 0{null}, got {value!r}')
        return value
    if name == "demonstration_spans":
        if not isinstance(value, list) or not all(
            isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span) for span in value
        ):
            raise DataError(f'"{name}" must be a list of [start, end]')
        return tuple(map(tuple, value))
    if name == "given":
        if not isinstance(value, list) or not all(type(count) is int and count >= 0 for count in value):
            raise DataError(f'"{name}" must be a list of whole numbers from 0')
        return tuple(value)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise DataError(f'"{name}" must be a list of texts{null}')
    return tuple(value)


def ledger_file(path: str | Path) -> Path:
    """The ledger itself: `path`, or the only .jsonl file of the directory `path`.

    Raises:
      DataError: nothing there, or several ledgers to choose from.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(path.glob("*.jsonl"))
        if len(found) != 1:
            what = f"holds {', '.join(file.name for file in found)}: name one" if found else "holds no .jsonl ledger"
            raise DataError(f"{path}: {what}")
        return found[0]
    if not path.is_file():
        raise DataError(f"{path}: no such ledger; tools.cache_tasks writes one to CACHE_DIR/ledgers")
    return path


def read_ledger(path: str | Path) -> list[Prompt]:
    """The prompts of a ledger, in file order.

    Args:
      path: the .jsonl file, or a directory that holds exactly one.

    Raises:
      DataError: one line, `file:line: what is wrong`: what `Prompt.parse` refuses, an id seen before, prompts of one
        task that disagree on what is said of the task. Or the file is not what was written (`about_file`).
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
                    raise DataError(f"prompt {prompt.id} stands in line {seen[prompt.id]} already")
                _check_agreement(prompt, tasks.setdefault(prompt.task, prompt), seen)
            except UnicodeDecodeError:
                raise DataError(f"{file}:{number}: not UTF-8") from None
            except DataError as error:
                raise DataError(f"{file}:{number}: {error}") from None
            seen[prompt.id] = number
            prompts.append(prompt)
    if not prompts:
        raise DataError(f"{file}: the ledger is empty")
    if about(file).get("sha256") not in (None, digest.hexdigest()):
        way_out = f"cache again, or remove {about_file(file)} if it was changed on purpose"
        raise DataError(f"{file}: not as it was written; {way_out}")
    return prompts


def read_ledgers(paths: Sequence[str | Path]) -> list[Prompt]:
    """The prompts of several suites, one after the other.

    Raises:
      DataError: as `read_ledger`; or a task stands in two of them, whose scores would be mixed.
    """
    prompts, files = [], {}
    for path in paths:
        for prompt in read_ledger(path):
            if (other := files.setdefault(prompt.task, path)) != path:
                raise DataError(f"{path}: task {prompt.task} stands in {other} too; evaluate the two apart")
            prompts.append(prompt)
    return prompts


def _check_agreement(prompt: Prompt, first: Prompt, lines: Mapping[str, int]) -> None:
    """Whether a prompt says of its task what the task's first one said: a mean over two metrics means nothing."""
    for field in OF_A_TASK:
        here, there = getattr(prompt, field), getattr(first, field)
        if here != there:
            raise DataError(f"task {prompt.task} has {field} {here} here and {there} in line {lines[first.id]}")


def about_file(ledger: Path) -> Path:
    """What its writer says of a ledger. One written by hand may go without."""
    return ledger.with_name(f"{ledger.stem}.about.json")


def about(path: str | Path) -> dict[str, Any]:
    """The contents of `about_file`; nothing where there is none.

    Raises:
      DataError: it cannot be read.
    """
    beside = about_file(ledger_file(path))
    try:
        return dict(json.loads(beside.read_text(encoding="utf-8"))) if beside.exists() else {}
    except (ValueError, TypeError) as error:
        raise DataError(f"{beside}: damaged ({error}); cache again") from None


def write_ledger(path: str | Path, prompts: Iterable[Prompt], says: Mapping[str, Any]) -> int:
    """Writes a ledger and what is said of it.

    Args:
      says: JSON values beside the checksum, such as "coverage" (`data.manifest.Coverage`).

    Returns:
      How many prompts there are.
    """
    path, digest, count = Path(path), hashlib.sha256(), 0
    about_file(path).unlink(missing_ok=True)
    with atomic(path) as file:
        for prompt in prompts:
            count += 1
            line = prompt.line().encode()
            digest.update(line)
            file.write(line)
    write_atomically(about_file(path), json.dumps({"sha256": digest.hexdigest(), **says}, indent=1) + "\n")
    return count

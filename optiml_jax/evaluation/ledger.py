"""The prompt ledger: JSON lines, one evaluation prompt each. The benchmark half writes it; this is its reader.

A ledger says everything an evaluation needs to know about a prompt, so that the engine never knows a benchmark:
the text, the candidates or none, the references, the metric, and where the score counts (category, level, shots).
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optiml_jax.errors import DataError, nearest
from optiml_jax.evaluation.metrics import METRICS
from optiml_jax.files import write_atomically

FORMAT = 1
LEVELS = ("fully_held_out", "held_out_task", "held_out_instances")  # paper section 2.3, hardest first


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One evaluation prompt. Candidates and references are bare texts; `prompt` ends with its delimiter.

    Attributes:
      candidates: None where the answer is generated; otherwise the model ranks them and one of them is a reference.
      group: what the task is a part of (57 subjects: "mmlu") or is known as in several benchmarks: parts are averaged
        before the category. None: it stands alone.
    """

    id: str
    suite: str
    benchmark: str
    task: str
    template: str
    example_id: str
    shots: int
    seed: int
    category: str
    level: str | None
    metric: str
    prompt: str
    candidates: tuple[str, ...] | None
    references: tuple[str, ...]
    demonstration_ids: tuple[str, ...] = ()
    group: str | None = None


def _texts(line: dict[str, Any], field: str) -> tuple[str, ...]:
    value = line[field]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise DataError(f'"{field}" must be a list of texts')
    return tuple(value)


def _parse(text: str) -> Prompt:
    """One line of a ledger; the errors do not name the file and line, the caller does."""
    try:
        line = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON ({error.msg})") from None
    if not isinstance(line, dict):
        raise DataError("not a JSON object")
    if line.get("format") != FORMAT:
        raise DataError(f"ledger format {line.get('format')!r}, this version reads {FORMAT}; build the ledger again")
    fields = {field.name for field in dataclasses.fields(Prompt)}
    line = {"demonstration_ids": [], "group": None} | {name: value for name, value in line.items() if name != "format"}
    if missing := sorted(fields - line.keys()):
        raise DataError(f"lacks {', '.join(missing)}")
    if unknown := sorted(line.keys() - fields):
        raise DataError(f'unknown field "{unknown[0]}"{nearest(unknown[0], fields)}')
    for name in fields - {"candidates", "references", "demonstration_ids", "shots", "seed", "level", "group"}:
        if not isinstance(line[name], str):
            raise DataError(f'"{name}" must be a text, got {line[name]!r}')
    for name in ("shots", "seed"):
        if type(line[name]) is not int or line[name] < 0:
            raise DataError(f'"{name}" must be a whole number from 0, got {line[name]!r}')
    if line["level"] is not None and line["level"] not in LEVELS:
        raise DataError(f"unknown level {line['level']!r}; known: {', '.join(LEVELS)} or null")
    if line["group"] is not None and not isinstance(line["group"], str):
        raise DataError(f'"group" must be a text or null, got {line["group"]!r}')
    if line["metric"] not in METRICS:
        raise DataError(
            f"unknown metric {line['metric']!r}{nearest(line['metric'], METRICS)}; known: {', '.join(METRICS)}"
        )
    candidates = None if line["candidates"] is None else _texts(line, "candidates")
    references = _texts(line, "references")
    if not references:
        raise DataError(f"prompt {line['id']}: no references")
    if candidates is not None and not candidates:
        raise DataError(f"prompt {line['id']}: empty candidate list; null means that the answer is generated")
    if candidates is not None and not set(candidates) & set(references):
        raise DataError(f"prompt {line['id']}: no candidate is a reference, so no answer can be right")
    texts = {"candidates": candidates, "references": references, "demonstration_ids": _texts(line, "demonstration_ids")}
    return Prompt(**line | texts)


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
      DataError: one line, `file:line: what is wrong`: malformed JSON, another format version, missing or unknown
        fields, an unknown metric, an id seen before, no references, no candidates or none that is a reference. Or the
        file is not what was written (`about_file`).
    """
    file = ledger_file(path)
    prompts, seen, digest = [], {}, hashlib.sha256()
    with file.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            digest.update(raw)
            if not raw.strip():
                continue
            try:
                prompt = _parse(raw.decode("utf-8"))
                if prompt.id in seen:
                    raise DataError(f"prompt {prompt.id} stands in line {seen[prompt.id]} already")
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


def about_file(ledger: Path) -> Path:
    """What its writer says of a ledger: checksum and coverage. One written by hand may go without."""
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


def write_about(ledger: Path, coverage: Mapping[str, Mapping[str, Sequence[int]]]) -> None:
    """Writes it for a finished ledger.

    Args:
      coverage: {benchmark: {role: [tasks with files, tasks there are]}}.
    """
    with ledger.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    write_atomically(about_file(ledger), json.dumps({"sha256": digest, "coverage": coverage}, indent=1) + "\n")


def ledger_fingerprint(prompts: Iterable[Prompt]) -> str:
    """sha256 of everything in the prompts and their order: equal exactly when two evaluations ask the same."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps(dataclasses.asdict(prompt), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()

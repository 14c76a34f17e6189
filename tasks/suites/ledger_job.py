"""The job that brings a suite's prompt ledger up to date. It writes texts, and imports neither tokenizer nor seqio."""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from tqdm import tqdm

from optiml_jax.common import typed_json
from optiml_jax.common.errors import DataError
from optiml_jax.common.files import exclusive
from optiml_jax.data.cache_paths import ledger_path
from optiml_jax.data.specification import DEFAULTS, CacheOptions, digest
from optiml_jax.evaluation.prompts.ledger import LEVELS, RANK, Prompt, about, about_file, copy_ledger, write_ledger
from tasks import suites
from tasks.catalog import review
from tasks.catalog.registry import MissingError, module_of
from tasks.example import Example, Record, Skipped, Template
from tasks.prompting import demonstrations
from tasks.prompting.subsampling import REMEDY, Pool
from tasks.reading import fingerprints
from tasks.suites import RELATED, Part, Suite
from tasks.task import Task

DEMONSTRATION_POOL = 1000  # records of a task from which demonstrations are drawn
LISTED = 1000  # skipped records listed by name


@dataclass
class LedgerResult:
    """A ledger that is up to date.

    Attributes:
      path: `ledgers/<suite>.jsonl`, a copy of the ledger.
      stored: the ledger, which is never changed.
      prompts: number of prompts for each (task, split, level).
      skipped: records that cannot become prompts, the first thousand.
      without_demonstrations: tasks without records for demonstrations, of which only 0-shot prompts were made.
      written: whether this run wrote the ledger.
    """

    path: Path
    stored: Path | None = None
    prompts: dict[tuple[str, str, str], int] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    skipped_count: int = 0
    left_out: tuple[Skipped, ...] = ()
    without_demonstrations: list[str] = field(default_factory=list)
    written: bool = False

    @property
    def count(self) -> int:
        return sum(self.prompts.values())


def run(
    suite: Suite,
    data_dir: str | None,
    cache_dir: str | os.PathLike,
    options: CacheOptions = DEFAULTS,
    max_prompts: int = 0,
    separator: str = demonstrations.SEPARATOR,
    may_be_empty: bool = False,
    contaminated: Mapping[str, frozenset[str]] | None = None,
    locked: bool = False,
) -> LedgerResult:
    """Brings the ledger of a suite up to date: prompts in the order of parts, records, templates, shots and seeds.

    Args:
      max_prompts: per part and number of shots, drawn from the pool of records x templates; 0 keeps all.
      separator: after each demonstration.
      contaminated: ids of examples that overlap with training, for checked tasks (`overlap.read_examples`).
      locked: whether the caller holds the lock of `cache_dir`.
      may_be_empty: whether data without any of its tasks make an empty ledger.

    Raises:
      UserError: there are no data, or the folder is being written.
      MissingError: the data have files of its benchmarks, but of none of its tasks.
      DataError: files or records cannot be used.
    """
    discovered = suite.discover(data_dir, options)
    parts = suite.available(discovered)
    if not parts and not may_be_empty:
        benchmarks = ", ".join(suite.benchmarks)
        raise MissingError(f"{data_dir} holds files of {benchmarks}, but of no task of suite {suite.name}")
    dropped = [
        Skipped(name, f"dropped by the review: {reason}")
        for name, reason in suites.dropped(options).items()
        if name in discovered.tasks
    ]
    result = LedgerResult(ledger_path(cache_dir, suite.name), left_out=(*discovered.left_out, *dropped))
    flagged = sorted((task, sorted(ids)) for task, ids in (contaminated or {}).items())
    identity = _identity(suite, parts, options, max_prompts, separator, flagged)
    lock = contextlib.nullcontext() if locked else exclusive(cache_dir, "wait for it or give another --cache_dir")
    with lock:
        stored = _find(cache_dir, suite.name, identity, data_dir, parts)
        if stored is None:
            raw = {part.task.name: fingerprints.raw_files(part.task.files, data_dir) for part in parts}
            hashes = {task: fingerprints.hashes(files) for task, files in raw.items()}
            stored = ledger_path(cache_dir, suite.name, f"{identity}-{digest(hashes)}")
            bar = tqdm(parts, f"ledger {suite.name}", unit="task", leave=False, delay=1)
            metadata: dict[str, Any] = {"coverage": discovered.coverage, "identity": identity, "raw": raw}
            metadata["dropped"] = [f"{item.where}: {item.reason}" for item in dropped]
            metadata["trained_as"] = review.trained_as({part.task.name for part in parts}, options.review)
            categories = {part.task.category for part in parts}
            metadata["related"] = {name: kin for name, kin in RELATED.items() if name in categories}
            most = {max_prompts if part.most is None else part.most for part in parts}
            metadata["prompts_per_task"] = max(most) if 0 not in most and most else None

            def prompts() -> Iterator[Prompt]:
                for part in bar:
                    part_prompts = _part(suite, part, max_prompts, separator, result)
                    yield from _counted(_flagged(part_prompts, contaminated or {}), part, result)
                metadata["prompts"] = [[*where, count] for where, count in result.prompts.items()]
                metadata["skipped"] = [dataclasses.asdict(item) for item in result.skipped]
                metadata["skipped_count"] = result.skipped_count
                metadata["without_demonstrations"] = result.without_demonstrations

            write_ledger(stored, prompts(), metadata)
            result.written = True
        else:
            _restore(result, stored)
        if not _is_copy(stored, result.path):
            copy_ledger(stored, result.path)
    return dataclasses.replace(result, stored=stored)


def _flagged(prompts: Iterator[Prompt], contaminated: Mapping[str, frozenset[str]]) -> Iterator[Prompt]:
    for prompt in prompts:
        ids = contaminated.get(prompt.task)
        yield prompt if ids is None else dataclasses.replace(prompt, contaminated=prompt.example_id in ids)


def _identity(suite: Suite, parts: list[Part], options: CacheOptions, *settings: object) -> str:
    """A hash of everything except the raw files that determines the prompts."""
    modules = [suites.__name__, f"{suites.__name__}.{suite.name}", __name__, *map(module_of, suite.benchmarks)]
    described = [
        (part.task.name, part.task.category, part.task.source, dataclasses.replace(part, task=None)) for part in parts
    ]
    used = {name: options.stored(name) for part in parts for name in ("review", *part.task.options_used)}
    text = repr((suite.name, fingerprints.code_version(*modules), sorted(used.items()), settings, described))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _find(
    cache_dir: str | os.PathLike, suite: str, identity: str, data_dir: str | None, parts: list[Part]
) -> Path | None:
    """The ledger that would be written now; None if there is none."""
    for path in sorted(ledger_path(cache_dir, suite, "").parent.glob(f"{identity}-*.jsonl")):
        with contextlib.suppress(DataError):
            raw = typed_json.convert(about(path), Written, str(path), "cache again")["raw"]
            if all(fingerprints.unchanged(part.task.files, data_dir, raw[part.task.name]) for part in parts):
                return path
    return None


def _is_copy(stored: Path, copy: Path) -> bool:
    """Whether `copy` is a copy of the ledger `stored`, going by their metadata."""
    with contextlib.suppress(DataError):
        return copy.exists() and about(copy).get("sha256") == about(stored)["sha256"]
    return False


class Written(TypedDict):
    """The fields that this module adds to the metadata of a ledger."""

    raw: dict[str, dict[str, fingerprints.RawFile]]
    prompts: list[tuple[str, str, str, int]]
    skipped: list[Skipped]
    skipped_count: int


def _restore(result: LedgerResult, path: Path) -> None:
    """Fills in `result` from the metadata of a ledger."""
    metadata = typed_json.convert(about(path), Written, str(about_file(path)), "remove it and cache again")
    result.prompts = {tuple(where): count for *where, count in metadata["prompts"]}
    result.skipped = [Skipped(**item) for item in metadata["skipped"]]
    result.skipped_count = metadata["skipped_count"]


def _counted(prompts: Iterator[Prompt], part: Part, result: LedgerResult) -> Iterator[Prompt]:
    where, count, skipped = (part.task.name, part.split, part.level or "none"), 0, result.skipped_count
    for prompt in prompts:
        count += 1
        yield prompt
    if not count and part.level == LEVELS[-1] and skipped == result.skipped_count:
        _skip(result, Skipped(part.task.name, "no instance is held out, because too few have a question of their own"))
        return
    if not count and not part.task.options.allow_empty_tasks:
        files = ", ".join(map(str, part.task.files))
        raise DataError(f"{part.task.name} ({files}): no usable instance for {part.split}; {REMEDY}")
    result.prompts[where] = result.prompts.get(where, 0) + count


def _part(suite: Suite, part: Part, max_prompts: int, separator: str, result: LedgerResult) -> Iterator[Prompt]:
    task, most = part.task, max_prompts if part.most is None else part.most
    separator = separator if part.separator is None else part.separator
    split, drawn = task.demonstrations, task.demonstrations_drawn
    pool = list(_usable(Pool(task, split, most=DEMONSTRATION_POOL))) if any(part.shots) else []
    if any(part.shots) and not pool:
        result.without_demonstrations.append(task.name)
        _skip(result, Skipped(task.name, f"no usable record in {split} for demonstrations; only 0-shot prompts"))
    numbers = part.shots if pool else (0,) * (0 in part.shots)
    keys = [(shots, seed) for shots in numbers for seed in (part.seeds if shots else (0,))]
    for pair in Pool(task, part.split, part.templates, most):
        if isinstance(pair, Skipped):
            _skip(result, pair)
            continue
        for shots, seed in keys:
            chosen = demonstrations.choose(pool, task.name, pair.record.id, shots, seed, drawn, split == part.split)
            example, ids = demonstrations.render(task, *pair, chosen, separator)
            if isinstance(example, Skipped):  # independent of its demonstrations
                _skip(result, example)
                break
            yield _prompt(suite, part, pair.template, example, (shots, seed), ids)


def _usable(pool: Pool) -> Iterator[Record]:
    """Records for demonstrations, each once even with several templates."""
    seen = set()
    for pair in pool:
        if not isinstance(pair, Skipped) and pair.record.id not in seen:
            seen.add(pair.record.id)
            yield pair.record


def _skip(result: LedgerResult, skipped: Skipped) -> None:
    result.skipped_count += 1
    result.skipped += [skipped] * (len(result.skipped) < LISTED)


def _prompt(
    suite: Suite,
    part: Part,
    template: Template,
    example: Example,
    key: tuple[int, int],
    demonstration_ids: tuple[str, ...],
) -> Prompt:
    task: Task = part.task
    metric = part.metric or template.metric
    return Prompt(
        suite=suite.name,
        benchmark=task.benchmark,
        task=task.name,
        template=template.id,
        example_id=example.id,
        shots=key[0],
        seed=key[1],
        category=task.category,
        level=part.level,
        metric=metric,
        prompt=example.source,
        candidates=example.candidates if (part.output_type or template.output_type) == RANK else None,
        references=example.references,
        demonstration_ids=demonstration_ids,
        demonstration_spans=example.demonstration_spans,
        group=part.group,
        separator=example.separator,
        stop=example.stop,
        max_new_tokens=example.max_new_tokens,
        given=example.given,
        part_of=example.part_of,
        split=part.split,
        pooled=part.pooled,
    )

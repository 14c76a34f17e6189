"""The job that writes a suite's prompt ledger, or finds that it is up to date. No tokens, no seqio."""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from optiml_jax.common.errors import DataError
from optiml_jax.common.files import exclusive
from optiml_jax.data.cache_paths import ledger_path
from optiml_jax.evaluation.prompts.ledger import Prompt, about, write_ledger
from tasks import suites
from tasks.catalog.registry import MissingError, module_of
from tasks.example import Example, Record, Skipped, Template
from tasks.prompting import demonstrations
from tasks.prompting.subsampling import WAY_OUT, Pool
from tasks.reading import fingerprints
from tasks.suites import Part, Suite
from tasks.task import Options, Task

SHOWN_FROM = 1000  # records of a task, of which demonstrations are drawn
LISTED = 1000  # skipped records named


@dataclass
class Result:
    """A ledger that is up to date.

    Attributes:
      prompts: how many there are of each (task, split, level).
      skipped: records that cannot be asked, the first thousand.
      written: whether this run wrote it.
    """

    path: Path
    prompts: dict[tuple[str, str, str], int] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    skipped_count: int = 0
    left_out: tuple[Skipped, ...] = ()
    written: bool = False

    @property
    def count(self) -> int:
        return sum(self.prompts.values())


def run(
    suite: Suite,
    data_dir: str | None,
    cache_dir: str | os.PathLike,
    options: Options = Options(),
    max_prompts: int = 0,
    separator: str = demonstrations.SEPARATOR,
    may_be_empty: bool = False,
    contaminated: Mapping[str, frozenset[str]] | None = None,
) -> Result:
    """Brings `ledgers/<suite>.jsonl` up to date: prompts in the order of parts, records, templates, shots and seeds.

    Args:
      max_prompts: of one part at each number of shots, drawn from the pool of records x templates; 0 keeps all.
      separator: after each demonstration.
      contaminated: examples that overlap with training, of the tasks that were looked at (`overlap.read_examples`).
      may_be_empty: whether a folder without any of its tasks makes an empty ledger.

    Raises:
      UserError: no data, or the folder is being written.
      MissingError: files of its benchmarks, but of no task that it asks.
      DataError: files or records that cannot be used.
    """
    found = suite.discover(data_dir, options)
    parts = suite.asked(found)
    if not parts and not may_be_empty:
        of = ", ".join(suite.benchmarks)
        raise MissingError(f"{data_dir} holds files of {of}, and none of a task that suite {suite.name} asks")
    dropped = [
        Skipped(name, f"dropped by the review: {reason}")
        for name, reason in suites.dropped(options).items()
        if name in found.tasks
    ]
    result = Result(ledger_path(cache_dir, suite.name), left_out=(*found.left_out, *dropped))
    flagged = sorted((task, sorted(ids)) for task, ids in (contaminated or {}).items())
    identity = _identity(suite, parts, options, max_prompts, separator, flagged)
    with exclusive(cache_dir, "wait for it or give another --cache_dir"):
        if _restore(result, identity, parts):
            return result
        files = {part.task.name: part.task.files for part in parts}
        raw = {name: fingerprints.raw_files(paths) for name, paths in files.items()}
        bar = tqdm(parts, f"ledger {suite.name}", unit="task", leave=False, delay=1)
        says: dict[str, Any] = {"coverage": found.coverage, "identity": identity, "raw": raw}
        says["dropped"] = [f"{item.where}: {item.reason}" for item in dropped]

        def prompts() -> Iterator[Prompt]:
            for part in bar:
                made = _part(suite, part, max_prompts, separator, result)
                yield from _counted(_flagged(made, contaminated or {}), part, result)
            says["prompts"] = [[*where, count] for where, count in result.prompts.items()]
            says["skipped"] = [dataclasses.asdict(item) for item in result.skipped]
            says["skipped_count"] = result.skipped_count

        write_ledger(result.path, prompts(), says)
        result.written = True
    return result


def _flagged(prompts: Iterator[Prompt], contaminated: Mapping[str, frozenset[str]]) -> Iterator[Prompt]:
    for prompt in prompts:
        known = contaminated.get(prompt.task)
        yield prompt if known is None else dataclasses.replace(prompt, contaminated=prompt.example_id in known)


def _identity(suite: Suite, parts: list[Part], options: Options, *asked_for: object) -> str:
    """Changes with everything but the raw files that a prompt follows from."""
    modules = [suites.__name__, f"{suites.__name__}.{suite.name}", __name__, *map(module_of, suite.benchmarks)]
    asked = [
        (part.task.name, part.task.category, part.task.source, dataclasses.replace(part, task=None)) for part in parts
    ]
    text = repr((suite.name, fingerprints.code_version(*modules), options, asked_for, asked))
    return hashlib.sha256(text.encode()).hexdigest()


def _restore(result: Result, identity: str, parts: list[Part]) -> bool:
    """Whether the ledger that is there would come out the same; then `result` says what is in it."""
    try:
        known: Mapping[str, Any] = about(result.path)
    except DataError:
        return False
    if known.get("identity") != identity:
        return False
    if not all(fingerprints.unchanged(part.task.files, known["raw"][part.task.name]) for part in parts):
        return False
    result.prompts = {tuple(where): count for *where, count in known["prompts"]}
    result.skipped = [Skipped(**item) for item in known["skipped"]]
    result.skipped_count = known["skipped_count"]
    return True


def _counted(prompts: Iterator[Prompt], part: Part, result: Result) -> Iterator[Prompt]:
    where, count = (part.task.name, part.split, part.level or "none"), 0
    for prompt in prompts:
        count += 1
        yield prompt
    if not count and not part.task.options.allow_empty_tasks:
        files = ", ".join(map(str, part.task.files))
        raise DataError(f"{part.task.name} ({files}): no usable instance for {part.split}; {WAY_OUT}")
    result.prompts[where] = result.prompts.get(where, 0) + count


def _part(suite: Suite, part: Part, max_prompts: int, separator: str, result: Result) -> Iterator[Prompt]:
    task, most = part.task, max_prompts if part.most is None else part.most
    separator = separator if part.separator is None else part.separator
    split, drawn = task.demonstrations, task.demonstrations_drawn
    shown_from = list(_usable(Pool(task, split, most=SHOWN_FROM))) if any(part.shots) else []
    if any(part.shots) and not shown_from:
        _skip(result, Skipped(task.name, f"no record of {split} to show: asked without demonstrations alone"))
    numbers = part.shots if shown_from else (0,) * (0 in part.shots)
    keys = [(shots, seed) for shots in numbers for seed in (part.seeds if shots else (0,))]
    for pair in Pool(task, part.split, part.templates, most):
        if isinstance(pair, Skipped):
            _skip(result, pair)
            continue
        for shots, seed in keys:
            shown = demonstrations.choose(
                shown_from, task.name, pair.record.id, shots, seed, drawn, split == part.split
            )
            example, ids = demonstrations.render(task, *pair, shown, separator)
            if isinstance(example, Skipped):  # whatever is shown before it
                _skip(result, example)
                break
            yield _prompt(suite, part, pair.template, example, (shots, seed), ids)


def _usable(pool: Pool) -> Iterator[Record]:
    """Records to show, each once whatever the templates."""
    seen = set()
    for pair in pool:
        if not isinstance(pair, Skipped) and pair.record.id not in seen:
            seen.add(pair.record.id)
            yield pair.record


def _skip(result: Result, skipped: Skipped) -> None:
    result.skipped_count += 1
    result.skipped += [skipped] * (len(result.skipped) < LISTED)


def _prompt(
    suite: Suite, part: Part, template: Template, example: Example, key: tuple[int, int], shown: tuple[str, ...]
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
        candidates=example.candidates if metric.name == "accuracy" else None,
        references=example.references,
        demonstration_ids=shown,
        demonstration_spans=example.shown,
        group=part.group,
        separator=example.separator,
        stop=example.stop,
        max_new_tokens=example.max_new_tokens,
        given=example.given,
        part_of=example.part_of,
    )

"""Work items of the pipeline: a shard of a task, what determines its bytes, and writing it."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from optiml_jax.common import typed_json
from optiml_jax.common.errors import UserError
from optiml_jax.common.files import atomic
from optiml_jax.data import cache_paths
from optiml_jax.data.specification import CacheOptions, digest
from optiml_jax.data.store import SPLIT, load_tokenizer
from optiml_jax.tokenizer import Tokenizer
from tasks.caching import shard
from tasks.catalog import mixtures
from tasks.catalog.registry import module_of
from tasks.example import Skipped
from tasks.prompting.subsampling import Choice, Pool
from tasks.reading import fingerprints
from tasks.task import Task

FAILED = ".failed"


@dataclass(frozen=True)
class Job:
    """Definition of a cache: the training tasks of a mixture."""

    mixture: str
    data_dir: str | None
    cache_dir: str
    options: CacheOptions = field(default_factory=CacheOptions)


class Origin(NamedTuple):
    """Everything from which the content of a task is made.

    Attributes:
      tokenizer: its fingerprint.
      identity: code and options.
      raw: the raw files, see `fingerprints.raw_files`.
    """

    task: str
    tokenizer: str
    identity: Mapping[str, Any]
    raw: Mapping[str, fingerprints.RawFile]

    @property
    def name(self) -> str:
        """Names the rendering: a hash of identity, then of the raw files by content."""
        return f"{self.identity_name}-{digest(fingerprints.hashes(self.raw))}"

    @property
    def identity_name(self) -> str:
        """The part of the name that does not depend on the raw files."""
        return digest(self.tokenizer, self.identity)


class Rendering(TypedDict):
    """The record of what a content was made from, in `renderings/` of a store."""

    task: str
    benchmark: str
    content: str
    raw_examples: int
    skipped_count: int
    truncated: int
    templates: dict[str, int]
    skipped: list[Skipped]
    code: str
    max_examples: int | None
    options: dict[str, Any]
    tokenizer: str
    raw: dict[str, fingerprints.RawFile]


def read_rendering(path: Path) -> Rendering:
    """Reads a rendering.

    Raises:
      DataError: the file is damaged.
    """
    return typed_json.read(path, Rendering, "remove the file and cache again")


class WorkItem(NamedTuple):
    """A shard of a task; with several shards, `choice` (the selected pairs of the whole task) is already known."""

    origin: Origin
    shard: int
    shards: int
    choice: Choice | None


def identity(options: CacheOptions, task: Task) -> dict[str, Any]:
    """Everything except the tokenizer and the raw files that determines the bytes of a task."""
    names = used_options(task)
    return {
        "code": code_version(task.benchmark),
        "max_examples": task.max_examples,
        "options": {name: options.stored(name) for name in names},
    }


def used_options(task: Task) -> list[str]:
    """The options on which the bytes of a task depend."""
    return sorted({"max_label_tokens", *task.options_used, *(["row_length"] if task.longer == "chunk" else [])})


def code_version(benchmark: str) -> str:
    """Version of the code that renders a benchmark and writes its tokens."""
    return fingerprints.code_version(module_of(benchmark), shard.__name__)


_loaded: dict[tuple[Job, str], tuple[Mapping[str, Task], Tokenizer]] = {}


def provide(job: Job, tasks: Mapping[str, Task], tokenizer: Tokenizer) -> None:
    """Provides what every item of a job needs to this process, and to those that it forks."""
    _loaded.clear()
    _loaded[job, tokenizer.fingerprint] = tasks, tokenizer


def worker(job: Job, tokenizer: str) -> tuple[Mapping[str, Task], Tokenizer]:
    """The tasks and tokenizer that every item of a job needs, loaded once per process."""
    if (job, tokenizer) not in _loaded:
        benchmark = mixtures.mixture(job.mixture).discover(job.data_dir, job.options)
        provide(job, benchmark.tasks, load_tokenizer(job.cache_dir, tokenizer))
    return _loaded[job, tokenizer]


def work_items(origin: Origin, job: Job) -> list[WorkItem]:
    """The shards of a task. With several, one pass over the whole task determines which pairs are selected."""
    task = worker(job, origin.tokenizer)[0][origin.task]
    with _report_failure(job, origin):
        shards = shard.shard_count(task.files)
        choice = Pool(task, SPLIT).choice if shards > 1 else None
        return [WorkItem(origin, number, shards, choice) for number in range(shards)]
    return []


def write_item(item: WorkItem, job: Job) -> None:
    """Writes one shard and, if it is the last of its task to be written, completes the content of the task."""
    origin = item.origin
    tasks, tokenizer = worker(job, origin.tokenizer)
    task, directory = tasks[origin.task], partial_path(job.cache_dir, origin)
    with _report_failure(job, origin):
        part = shard.write_shard(directory, task, item.shard, item.shards, tokenizer, job.options, item.choice)
        parts = [part]
        if item.shards > 1:
            names = [f"{SPLIT}-{i:05d}-of-{item.shards:05d}.json" for i in range(item.shards)]
            shard.write_json(directory / names[item.shard], part)
            if not all((directory / name).exists() for name in names):
                return
            parts = [json.loads((directory / name).read_text(encoding="utf-8")) for name in names]
            for name in names:
                (directory / name).unlink(missing_ok=True)
        if not (job.options.allow_empty_tasks or task.may_be_empty):
            shard.check_not_empty(origin.task, origin.raw, parts)
        rendering = {
            "task": task.name,
            "benchmark": task.benchmark,
            "content": shard.finish(directory, parts),
            **shard.account(parts),
            **origin.identity,
            "tokenizer": origin.tokenizer,
            "raw": origin.raw,
        }
        shard.write_json(cache_paths.rendering_path(job.cache_dir, task.name, origin.name), rendering)


def partial_path(cache_dir: str, origin: Origin) -> Path:
    """The folder of a content while it is written, when its final name is not known."""
    return cache_paths.content_path(cache_dir, origin.task, f".{origin.name}")


@contextlib.contextmanager
def _report_failure(job: Job, origin: Origin) -> Iterator[None]:
    """Writes a fault in the data or the disk to a file, for the pipeline's caller to raise; Beam would wrap it in a
    traceback of its own."""
    try:
        yield
    except (UserError, OSError) as error:
        with atomic(failure_path(job.cache_dir, origin)) as file:
            file.write(str(error).encode())


def failure_path(cache_dir: str, origin: Origin) -> Path:
    """The file with the fault of a task that could not be written."""
    return cache_paths.rendering_path(cache_dir, origin.task, origin.name).with_suffix(FAILED)

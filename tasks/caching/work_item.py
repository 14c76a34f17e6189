"""Work items of the pipeline: a shard of a task, what determines its bytes, and writing it."""

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from optiml_jax.common.errors import UserError
from optiml_jax.common.files import atomic
from optiml_jax.data.store import SPLIT
from optiml_jax.tokenizer import Tokenizer
from tasks.caching import shard
from tasks.caching.shard import Limits
from tasks.catalog import mixtures
from tasks.catalog.registry import module_of
from tasks.prompting.subsampling import Choice, Pool
from tasks.reading import fingerprints
from tasks.task import Options, Task

FAILED = ".failed"


@dataclass(frozen=True)
class Job:
    """Definition of a cache: the training tasks of a mixture."""

    mixture: str
    data_dir: str | None
    cache_dir: str
    options: Options = field(default_factory=Options)
    limits: Limits = field(default_factory=Limits)


class WorkItem(NamedTuple):
    """A shard of a task; with several shards, `choice` (the selected pairs of the whole task) is already known."""

    task: str
    shard: int
    shards: int
    choice: Choice | None


def identity(job: Job, fingerprint: str, task: Task) -> dict:
    """Everything except the raw files that determines the bytes of a task."""
    fields = {
        "task": task.name,
        "benchmark": task.benchmark,
        "split": SPLIT,
        "code_version": fingerprints.code_version(module_of(task.benchmark), shard.__name__),
        "tokenizer": fingerprint,
        "held_out_instances": job.options.held_out_instances,
        "all_templates": job.options.all_templates,
        "t0_truncation": job.options.t0_truncation,
        "max_label_tokens": job.limits.max_label_tokens,
        "max_examples": task.max_examples,
    }
    return fields | ({"row_length": job.limits.row_length} if task.longer == "chunk" else {})


@functools.lru_cache(maxsize=1)
def worker(job: Job) -> tuple[Mapping[str, Task], Tokenizer]:
    """The tasks and tokenizer that every item of a job needs, loaded once per process."""
    benchmark = mixtures.mixture(job.mixture).discover(job.data_dir, job.options)
    return benchmark.tasks, Tokenizer.load(Path(job.cache_dir) / "tokenizer")


def work_items(name: str, job: Job) -> list[WorkItem]:
    """The shards of a task. With several, one pass over the whole task determines which pairs are selected."""
    task = worker(job)[0][name]
    with _report_failure(job, name):
        shards = shard.shard_count(task.files)
        choice = Pool(task, SPLIT).choice if shards > 1 else None
        return [WorkItem(name, number, shards, choice) for number in range(shards)]
    return []


def write_item(item: WorkItem, job: Job) -> None:
    """Writes one shard and, if it is the last of its task to be written, the task's stats."""
    tasks, tokenizer = worker(job)
    task, cache_dir = tasks[item.task], Path(job.cache_dir)
    directory = cache_dir / "tasks" / task.name
    with _report_failure(job, task.name):
        # Before reading, so that a file that changes meanwhile counts as changed at the next run.
        raw = fingerprints.raw_files(task.files)
        part = shard.write_shard(cache_dir, task, item.shard, item.shards, tokenizer, job.limits, item.choice)
        parts = [part]
        if item.shards > 1:
            names = [f"{SPLIT}-{i:05d}-of-{item.shards:05d}.json" for i in range(item.shards)]
            shard.write_json(directory / names[item.shard], part)
            if not all((directory / name).exists() for name in names):
                return
            parts = [json.loads((directory / name).read_text(encoding="utf-8")) for name in names]
        fields = identity(job, tokenizer.fingerprint, task)
        shard.finish(cache_dir, fields, raw, parts, job.options.allow_empty_tasks)


@contextlib.contextmanager
def _report_failure(job: Job, task: str) -> Iterator[None]:
    """Writes a fault in the data or the disk to a file, for the pipeline's caller to raise; Beam would wrap it in a
    traceback of its own."""
    try:
        yield
    except (UserError, OSError) as error:
        with atomic(Path(job.cache_dir) / "tasks" / task / f"{SPLIT}{FAILED}") as file:
            file.write(str(error).encode())

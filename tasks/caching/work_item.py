"""One element of the pipeline: a shard of a task. What is asked for, what its bytes follow from, and writing it."""

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from optiml_jax.common.errors import UserError
from optiml_jax.common.files import atomic
from optiml_jax.tokenizer import Tokenizer
from tasks.caching import shard
from tasks.caching.shard import SPLIT, Limits
from tasks.catalog import mixtures
from tasks.catalog.registry import module_of
from tasks.prompting.subsampling import Choice, Pool
from tasks.reading import fingerprints
from tasks.task import Options, Task

FAILED = ".failed"


@dataclass(frozen=True)
class Job:
    """What to cache: the tasks that a mixture trains on."""

    mixture: str
    data_dir: str | None
    cache_dir: str
    options: Options = field(default_factory=Options)
    limits: Limits = field(default_factory=Limits)


class Element(NamedTuple):
    """A shard of a task; `choice` is known beforehand where there are several."""

    task: str
    shard: int
    shards: int
    choice: Choice | None


def identity(job: Job, fingerprint: str, task: Task) -> dict:
    """Everything but the raw files that the bytes of a task follow from."""
    known = {
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
    return known | ({"row_length": job.limits.row_length} if task.longer == "chunk" else {})


@functools.lru_cache(maxsize=1)
def worker(job: Job) -> tuple[Mapping[str, Task], Tokenizer]:
    """What every element of a job needs, found once a process."""
    found = mixtures.mixture(job.mixture).discover(job.data_dir, job.options)
    return found.tasks, Tokenizer.load(Path(job.cache_dir) / "tokenizer")


def elements(name: str, job: Job) -> list[Element]:
    """The shards of a task. Of several, each must know what is taken of the whole: one pass over it finds out."""
    task = worker(job)[0][name]
    with _noted(job, name):
        shards = shard.shard_count(task.files)
        choice = Pool(task, SPLIT).choice if shards > 1 else None
        return [Element(name, number, shards, choice) for number in range(shards)]
    return []


def write_element(element: Element, job: Job) -> None:
    """Writes one shard and, if it is the last of its task to be written, the task's stats."""
    tasks, tokenizer = worker(job)
    task, cache_dir = tasks[element.task], Path(job.cache_dir)
    directory = cache_dir / "tasks" / task.name
    with _noted(job, task.name):
        raw = fingerprints.raw_files(
            task.files
        )  # before reading: a file changed meanwhile is seen as changed next time
        part = shard.write_shard(cache_dir, task, element.shard, element.shards, tokenizer, job.limits, element.choice)
        parts = [part]
        if element.shards > 1:
            names = [f"{SPLIT}-{i:05d}-of-{element.shards:05d}.json" for i in range(element.shards)]
            shard.write_json(directory / names[element.shard], part)
            if not all((directory / name).exists() for name in names):
                return
            parts = [json.loads((directory / name).read_text(encoding="utf-8")) for name in names]
        known = identity(job, tokenizer.fingerprint, task)
        shard.finish(cache_dir, known, raw, parts, job.options.allow_empty_tasks)


@contextlib.contextmanager
def _noted(job: Job, task: str) -> Iterator[None]:
    """A fault in the data or the disk is written beside them, for the pipeline's caller to raise: Beam would wrap it
    in its own traceback."""
    try:
        yield
    except (UserError, OSError) as error:
        with atomic(Path(job.cache_dir) / "tasks" / task / f"{SPLIT}{FAILED}") as file:
            file.write(str(error).encode())

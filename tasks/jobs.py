"""One element of the caching pipeline: what is asked for, what its bytes follow from, and writing it."""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import optiml_jax
from optiml_jax.errors import UserError
from optiml_jax.files import atomic
from optiml_jax.opt import tokenizer as tokenizer_module
from optiml_jax.opt.tokenizer import Tokenizer
from tasks import mixtures, shards
from tasks.registry import Options, Task

FAILED = ".failed"


@dataclass(frozen=True)
class Job:
    """What to cache. `max_label_tokens`: longer labels are skipped; 0 keeps all."""

    mixture: str
    data_dir: str | None
    cache_dir: str
    options: Options = field(default_factory=Options)
    max_label_tokens: int = 0


class Element(NamedTuple):
    task: str
    split: str
    shard: int
    shards: int


@functools.cache
def code_version() -> str:
    """Version of this project and a hash of every source file that decides a byte of the store."""
    package = Path(__file__).parent
    files = [package / name for name in ("example.py", "prompts.py", "registry.py", "shards.py")]
    files += [*sorted((package / "benchmarks").glob("*.py")), Path(tokenizer_module.__file__)]
    digest = hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()
    return f"{optiml_jax.__version__}+{digest[:12]}"


def identity(job: Job, fingerprint: str, task: Task, split: str) -> dict:
    """Everything but the raw files that the bytes of a split follow from."""
    return {
        **{key: getattr(task, key) for key in ("benchmark", "category", "source", "level", "metric")},
        "task": task.name,
        "split": split,
        "code_version": code_version(),
        "tokenizer": fingerprint,
        "held_out_instances": job.options.held_out_instances,
        "max_label_tokens": job.max_label_tokens,
        "max_examples": task.max_examples,
    }


@functools.lru_cache(maxsize=1)
def worker(job: Job) -> tuple[Mapping[str, Task], Tokenizer]:
    """What every element of a job needs, found once a process."""
    found = mixtures.mixture(job.mixture).discover(job.data_dir, job.options)
    return found.tasks, Tokenizer.load(Path(job.cache_dir) / "tokenizer")


def write_element(element: Element, job: Job) -> None:
    """Writes one shard and, if it is the last of its split to be written, the split's stats.

    A fault in the data or the disk is written beside them, for the pipeline's caller to raise: Beam would wrap it in
    its own traceback.
    """
    tasks, tokenizer = worker(job)
    task, cache_dir = tasks[element.task], Path(job.cache_dir)
    directory = cache_dir / "tasks" / task.name
    try:
        raw = shards.raw_files(task.files)  # before reading: a file changed meanwhile is seen as changed next time
        part = shards.write_shard(cache_dir, *(task, *element[1:]), tokenizer, job.max_label_tokens)
        if element.shards > 1:
            names = [f"{element.split}-{i:05d}-of-{element.shards:05d}.json" for i in range(element.shards)]
            shards.write_json(directory / names[element.shard], part)
            if not all((directory / name).exists() for name in names):
                return
            parts = [json.loads((directory / name).read_text(encoding="utf-8")) for name in names]
        else:
            parts = [part]
        known = identity(job, tokenizer.fingerprint, task, element.split)
        shards.finish(cache_dir, known, raw, parts, job.options.allow_empty_tasks)
    except (UserError, OSError) as error:
        with atomic(directory / f"{element.split}{FAILED}") as file:
            file.write(str(error).encode())

"""Brings the token store of a mixture up to date, doing only what is missing or out of date.

A task is out of date if its raw files (by content), the code that renders it, or its options have changed.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from optiml_jax.common import files
from optiml_jax.common.errors import UserError
from optiml_jax.data.cache_paths import manifest_path
from optiml_jax.data.manifest import Manifest, TaskSize, present
from optiml_jax.data.store import FORMAT, SPLIT
from optiml_jax.data.verify import check_store
from optiml_jax.tokenizer import Tokenizer
from tasks.caching import estimate, pipeline, shard
from tasks.caching.work_item import Job, identity
from tasks.catalog import mixtures
from tasks.example import Skipped
from tasks.reading import fingerprints
from tasks.task import Task


@dataclass(frozen=True)
class CacheResult:
    """A mixture whose store and manifest are up to date.

    `written` are those of its `tasks` that this run cached, in `seconds` of the pipeline (without imports and
    discovery).
    """

    tasks: list[Task]
    written: list[Task]
    left_out: tuple[Skipped, ...]
    manifest: Manifest
    seconds: float


def run(
    job: Job,
    tokenizer: Tokenizer,
    beam_flags: Sequence[str] = (),
    announce: Callable[[estimate.StorePlan], None] | None = None,
) -> CacheResult:
    """Brings the store and the manifest of a mixture up to date.

    Args:
      beam_flags: Beam's own command line, such as `--runner=FlinkRunner`.
      announce: called with the plan before work starts; None skips planning.

    Raises:
      UserError: the mixture is unknown, there are no data, or the store has another tokenizer or format, or is in use.
      DataError: files or records cannot be used. Tasks without faults are cached nevertheless.
    """
    mixture = mixtures.mixture(job.mixture)
    discovered = mixture.discover(job.data_dir, job.options)
    tasks, cache_dir, seconds = mixture.tasks(discovered), Path(job.cache_dir), 0.0
    path = manifest_path(cache_dir, mixture.name)
    with exclusive(cache_dir):
        open_store(cache_dir, tokenizer)
        pending = [task for task in tasks if not is_current(job, tokenizer.fingerprint, task)]
        if pending:
            if announce:
                announce(estimate.plan(pending, tokenizer))
            path.unlink(missing_ok=True)  # a manifest promises a complete mixture
            for task in pending:
                clear(cache_dir, task)
            seconds = pipeline.write(job, pending, beam_flags)
        sizes = (
            TaskSize(task.name, task.benchmark, task.category, read_stats(cache_dir, task.name)["examples"])
            for task in tasks
        )
        nonempty = tuple(size for size in sizes if size.examples)
        proportions = present(mixture.proportions, nonempty)
        manifest = Manifest(mixture.name, nonempty, mixture.eps, proportions, discovered.coverage)
        manifest.write(path)
    left_out = (*discovered.left_out, *mixture.not_drawn(discovered))
    return CacheResult(tasks, pending, left_out, manifest, seconds)


@contextlib.contextmanager
def exclusive(cache_dir: Path) -> Iterator[None]:
    """Locks a store while it is written, until the block or the process ends.

    Two writers would not corrupt a file (each is written under a temporary name), but one would remove what the other
    has finished, and describe a mixture whose tasks are gone.

    Raises:
      UserError: another process holds the lock, or the folder contains other files.
    """
    occupied = cache_dir.is_dir() and any(cache_dir.iterdir())
    if occupied and not any((cache_dir / name).exists() for name in (files.LOCK, "store.json")):
        raise UserError(f"{cache_dir}: holds files but no token store; give an empty --cache_dir")
    with files.exclusive(cache_dir, "wait for it or give another --cache_dir"):
        for left in cache_dir.rglob(".*.tmp"):  # left by a killed run
            left.unlink(missing_ok=True)
        yield


def open_store(cache_dir: Path, tokenizer: Tokenizer) -> None:
    """Creates an empty store for the tokenizer, or checks that the existing store has that tokenizer."""
    path = cache_dir / "store.json"
    if path.exists():
        header = json.loads(path.read_text(encoding="utf-8"))
        if header.get("format") != FORMAT:
            raise UserError(f"{path}: format {header.get('format')}, not {FORMAT}; give an empty --cache_dir")
        if header["tokenizer"]["fingerprint"] != tokenizer.fingerprint:
            raise UserError(
                f"{path}: made with another tokenizer, {cache_dir}/tokenizer; use it or an empty --cache_dir"
            )
        return
    try:
        tokenizer.save(cache_dir / "tokenizer")
    except OSError as error:
        raise UserError(f"--cache_dir={cache_dir}: cannot be written ({error.strerror})") from error
    ids = {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size}
    shard.write_json(path, {"format": FORMAT, "tokenizer": ids})  # written last: it marks the store as complete


def read_stats(cache_dir: str | os.PathLike, task: str) -> dict | None:
    """The stats of a finished task; None if it is not finished."""
    path = Path(cache_dir) / "tasks" / task / f"{SPLIT}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def is_current(job: Job, fingerprint: str, task: Task) -> bool:
    """Whether a task is finished and would be cached identically."""
    stats = read_stats(job.cache_dir, task.name)
    if not stats or not identity(job, fingerprint, task).items() <= stats.items():
        return False
    if not all((Path(job.cache_dir) / "tasks" / task.name / name).exists() for name in stats["checksums"]):
        return False
    return fingerprints.unchanged(task.files, stats["raw"])


def clear(cache_dir: Path, task: Task) -> None:
    """Removes a task from the store, stats first, with anything that a killed run may have left of it."""
    directory = cache_dir / "tasks" / task.name
    (directory / f"{SPLIT}.json").unlink(missing_ok=True)
    for path in [*directory.glob(f"{SPLIT}[-.]*"), *directory.glob(f".{SPLIT}[-.]*.tmp")]:
        path.unlink()


def verify(cache_dir: str | os.PathLike) -> Iterator[str]:
    """Yields a message for each fault of a store: damaged or missing files, another tokenizer, mixtures of other sizes.

    Raises:
      UserError: there is no store.
    """
    yield from check_store(cache_dir)
    path = Path(cache_dir) / "tokenizer"
    header = json.loads((Path(cache_dir) / "store.json").read_text(encoding="utf-8"))
    try:
        fingerprint = Tokenizer.load(path).fingerprint
    except UserError as error:
        yield str(error)
        return
    if fingerprint != header["tokenizer"]["fingerprint"]:
        yield f"{path}: not the tokenizer that made this store; restore it or cache again in an empty folder"

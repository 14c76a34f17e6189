"""Brings the token store of a mixture up to date: does only what is missing or out of date.

Out of date is what was made from other raw files (by content), by other code, or with other options.
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
from optiml_jax.data.store import FORMAT
from optiml_jax.data.verify import check_store
from optiml_jax.tokenizer import Tokenizer
from tasks.caching import estimate, pipeline, shard
from tasks.caching.shard import SPLIT
from tasks.caching.work_item import Job, identity
from tasks.catalog import mixtures
from tasks.example import Skipped
from tasks.reading import fingerprints
from tasks.task import Task


@dataclass(frozen=True)
class Result:
    """A mixture whose store and manifest are up to date.

    `written` of its `tasks` were made by this run, in `seconds` of the pipeline (without imports and discovery).
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
    announce: Callable[[estimate.Plan], None] | None = None,
) -> Result:
    """Brings the store and the manifest of a mixture up to date.

    Args:
      beam_flags: Beam's own command line, such as `--runner=FlinkRunner`.
      announce: told what is planned before it is done; None for no plan.

    Raises:
      UserError: unknown mixture, no data, the store was made with another tokenizer or format, or is being written.
      DataError: files or records that cannot be used. Tasks without fault are cached all the same.
    """
    mixture = mixtures.mixture(job.mixture)
    found = mixture.discover(job.data_dir, job.options)
    tasks, cache_dir, seconds = mixture.tasks(found), Path(job.cache_dir), 0.0
    path = manifest_path(cache_dir, mixture.name)
    with exclusive(cache_dir):
        open_store(cache_dir, tokenizer)
        pending = [task for task in tasks if not is_current(job, tokenizer.fingerprint, task)]
        if pending:
            if announce:
                announce(estimate.plan(pending, tokenizer))
            path.unlink(missing_ok=True)  # a mixture that is described is complete
            for task in pending:
                clear(cache_dir, task)
            seconds = pipeline.write(job, pending, beam_flags)
        sizes = (
            TaskSize(task.name, task.benchmark, task.category, read_stats(cache_dir, task.name)["examples"])
            for task in tasks
        )
        known = tuple(size for size in sizes if size.examples)
        manifest = Manifest(mixture.name, known, mixture.eps, present(mixture.proportions, known), found.coverage)
        manifest.write(path)
    left_out = (*found.left_out, *mixture.not_drawn(found))
    return Result(tasks, pending, left_out, manifest, seconds)


@contextlib.contextmanager
def exclusive(cache_dir: Path) -> Iterator[None]:
    """Held while a store is written; ends with the process, however that ends.

    Two writers would never tear a file (each is written whole, then named), but one would remove what the other has
    finished, and describe a mixture whose tasks are gone.

    Raises:
      UserError: another process holds it, or the folder is no place for a store.
    """
    there = cache_dir.is_dir() and any(cache_dir.iterdir())
    if there and not any((cache_dir / name).exists() for name in (files.LOCK, "store.json")):
        raise UserError(f"{cache_dir}: holds files but no token store; give an empty --cache_dir")
    with files.exclusive(cache_dir, "wait for it or give another --cache_dir"):
        for left in cache_dir.rglob(".*.tmp"):  # by a killed run
            left.unlink(missing_ok=True)
        yield


def open_store(cache_dir: Path, tokenizer: Tokenizer) -> None:
    """Makes an empty store for the tokenizer, or checks that the store is one of it."""
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
    shard.write_json(path, {"format": FORMAT, "tokenizer": ids})  # last: with it the store exists


def read_stats(cache_dir: str | os.PathLike, task: str) -> dict | None:
    """The stats of a finished task; None when it is not finished."""
    path = Path(cache_dir) / "tasks" / task / f"{SPLIT}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def is_current(job: Job, fingerprint: str, task: Task) -> bool:
    """The task is finished and would come out the same."""
    stats = read_stats(job.cache_dir, task.name)
    if not stats or not identity(job, fingerprint, task).items() <= stats.items():
        return False
    if not all((Path(job.cache_dir) / "tasks" / task.name / name).exists() for name in stats["checksums"]):
        return False
    return fingerprints.unchanged(task.files, stats["raw"])


def clear(cache_dir: Path, task: Task) -> None:
    """Takes a task out of the store, its stats first, and what a killed run may have left of it."""
    directory = cache_dir / "tasks" / task.name
    (directory / f"{SPLIT}.json").unlink(missing_ok=True)
    for path in [*directory.glob(f"{SPLIT}[-.]*"), *directory.glob(f".{SPLIT}[-.]*.tmp")]:
        path.unlink()


def verify(cache_dir: str | os.PathLike) -> Iterator[str]:
    """A line for each fault of a store: damaged or missing files, another tokenizer, mixtures of other sizes.

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
        yield f"{path}: not the tokenizer that made this store; put that one there or cache again in an empty folder"

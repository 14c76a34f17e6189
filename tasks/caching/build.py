"""Brings the token store of a mixture up to date, doing only what is missing or out of date.

A task is out of date if its raw files (by content), the code that renders it, or its options have changed. What was
cached before stays in the store, for the runs that read it, until `prune.py` removes it.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optiml_jax.common import files
from optiml_jax.common.errors import DataError, EmptyLedgerError, UserError
from optiml_jax.data import cache_paths
from optiml_jax.data.manifest import Manifest, TaskSize, present
from optiml_jax.data.specification import PERMISSIONS, Specification, absolute, digest
from optiml_jax.data.store import SPLIT, read_counts
from optiml_jax.data.verify import check_store
from optiml_jax.evaluation.prompts.ledger import about, read_ledger
from optiml_jax.tokenizer import Tokenizer
from tasks.caching import estimate, pipeline, shard
from tasks.caching.work_item import (
    FAILED,
    Job,
    Origin,
    Rendering,
    code_version,
    identity,
    provide,
    read_rendering,
    used_options,
)
from tasks.catalog import mixtures
from tasks.example import Skipped
from tasks.reading import fingerprints
from tasks.task import Task

MAX_NAME = 200  # bytes; file systems allow 255


@dataclass(frozen=True)
class CacheResult:
    """A mixture whose store and manifest are up to date.

    Attributes:
      tasks: all of the mixture; `written`: those that this run cached, in `seconds` of the pipeline (without imports
        and discovery).
      renderings: what each task was made from, by name.
      path: of the manifest.
    """

    tasks: list[Task]
    written: list[Task]
    renderings: Mapping[str, Rendering]
    left_out: tuple[Skipped, ...]
    notes: tuple[str, ...]
    manifest: Manifest
    path: Path
    seconds: float

    def counts(self, task: str) -> dict[str, Any]:
        """Everything that is counted of a task: its raw records and its stored tokens."""
        rendering = self.renderings[task]
        content = cache_paths.content_path(self.path.parents[2], task, rendering["content"])
        return {**rendering, **read_counts(content, SPLIT)}


def run(
    job: Job,
    tokenizer: Tokenizer,
    beam_flags: Sequence[str] = (),
    announce: Callable[[estimate.StorePlan], None] | None = None,
    ledgers: Callable[[], Mapping[str, str]] = dict,
    check_only: bool = False,
) -> CacheResult:
    """Brings the store and the manifest of a mixture up to date.

    Args:
      beam_flags: Beam's own command line, such as `--runner=FlinkRunner`.
      announce: called with the plan before work starts; None skips planning.
      ledgers: writes the ledgers of the mixture's suites, and returns their paths for the manifest.
      check_only: writes nothing.

    Raises:
      UserError: the mixture is unknown, there are no data, or the store has another format, or is in use; or a task is
        out of date and `check_only` is set.
      DataError: files or records cannot be used. Tasks without faults are cached nevertheless.
    """
    mixture = mixtures.mixture(job.mixture)
    discovered = mixture.discover(job.data_dir, job.options)
    if not mixture.tasks(discovered) and discovered.left_out:
        first, more = discovered.left_out[0], len(discovered.left_out) - 1
        others = f" (and {more:,} more are left out)" if more else ""
        raise DataError(f"{first.where}: {first.reason}; no task of mixture {mixture.name} is left{others}")
    tasks, cache_dir, seconds = mixture.tasks(discovered), Path(job.cache_dir), 0.0
    if too_long := next((task.name for task in tasks if len(task.name.encode()) > MAX_NAME), None):
        raise DataError(f"task {too_long[:60]}...: its name, a folder's, is longer than {MAX_NAME} bytes; shorten it")
    with contextlib.nullcontext() if check_only else exclusive(cache_dir):
        if not check_only:
            open_store(cache_dir, tokenizer)
        current = {task.name: find_rendering(job, tokenizer.fingerprint, task) for task in tasks}
        pending = [task for task in tasks if current[task.name] is None]
        if pending and check_only:
            raise UserError(f"{cache_dir}: {pending[0].name} is not cached as it is now ({len(pending)} such tasks)")
        if pending:
            provide(job, discovered.tasks, tokenizer)
            origins = [origin(job, tokenizer.fingerprint, task) for task in pending]
            with pipeline.workers(pending) as map_:
                if announce:
                    announce(estimate.plan(job, origins, map_))
                seconds = pipeline.write(job, origins, map_, beam_flags)
            for task in pending:
                current[task.name] = find_rendering(job, tokenizer.fingerprint, task)
                if current[task.name] is None:
                    raise DataError(f"{task.name}: its files changed while they were read; run the same command again")
        renderings: dict[str, Rendering] = {name: current[name] for name in sorted(current)}
        sizes = tuple(size for task in tasks if (size := _size(cache_dir, task, renderings[task.name])).examples)
        manifest = Manifest(
            mixture.name,
            sizes,
            mixture.eps,
            present(mixture.proportions, sizes),
            mixture.coverage(discovered),
            _specification(job, tokenizer, tasks, renderings, discovered.missing),
            {} if check_only else ledgers(),
        )
        path = cache_paths.manifest_path(cache_dir, mixture.name, manifest.specification.key)
        if not check_only:
            manifest.write(path)
        elif not path.exists() or Manifest.read(path).tasks != sizes:
            raise UserError(f"{cache_dir}: mixture {mixture.name} is not cached as it is now")
    left_out = (*discovered.left_out, *mixture.not_drawn(discovered))
    return CacheResult(tasks, pending, renderings, left_out, discovered.notes, manifest, path, seconds)


def _size(cache_dir: Path, task: Task, rendering: Rendering) -> TaskSize:
    content = rendering["content"]
    counts = read_counts(cache_paths.content_path(cache_dir, task.name, content), SPLIT)
    return TaskSize(task.name, task.benchmark, task.category, counts["examples"], content)


def _specification(
    job: Job,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    renderings: Mapping[str, Rendering],
    missing: Sequence[str],
) -> Specification:
    """The specification of a mixture. `missing`: benchmarks that are left out because their data are missing."""
    names = {name for task in tasks for name in used_options(task)}
    names |= {"review", *(["missing_benchmarks"] if missing else [])}
    raw: dict[str, list[tuple[str, str]]] = {}
    for task in tasks:
        raw.setdefault(task.benchmark, []).extend(fingerprints.hashes(renderings[task.name]["raw"]).items())
    has_raw_files = any(not file.is_relative_to(fingerprints.ROOT / "tasks") for task in tasks for file in task.files)
    return Specification(
        tokenizer=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        options={name: job.options.stored(name) for name in sorted(names - set(PERMISSIONS))},
        data_dir=absolute(job.data_dir) if has_raw_files else None,
        code={benchmark: code_version(benchmark) for benchmark in sorted(raw)},
        raw={benchmark: digest(sorted(set(raw[benchmark]))) for benchmark in sorted(raw)},
    )


@contextlib.contextmanager
def exclusive(cache_dir: Path) -> Iterator[None]:
    """Locks a store while it is written, until the block or the process ends.

    Two writers would not corrupt a file (each is written under a temporary name), but one would remove what the other
    has begun.

    Raises:
      UserError: another process holds the lock, or the folder contains other files.
    """
    ours = {files.LOCK, files.HOLDER, cache_paths.HEADER, "ledgers"}  # a folder with ledgers alone has no header
    present = {path.name for path in cache_dir.iterdir()} if cache_dir.is_dir() else set()
    foreign = {name for name in present - ours if not name.startswith(f".{cache_paths.HEADER}.")}
    if foreign and not (cache_dir / cache_paths.HEADER).exists():  # looked up last: another process may just write it
        raise UserError(f"{cache_dir}: holds files but no token store; give an empty --cache_dir")
    with files.exclusive(cache_dir, "wait for it or give another --cache_dir"):
        remove_partial(cache_dir)
        yield


def remove_partial(cache_dir: Path) -> None:
    """Removes what a killed run has left: files and folders with temporary names, and faults of an earlier run."""
    temporary = [
        f"{folder}.*.tmp" for folder in ("", "tokenizers/", "mixtures/*/", "renderings/*/", "ledgers/", "ledgers/*/")
    ]
    for pattern in (*temporary, "tasks/*/.*", f"renderings/*/*{FAILED}"):  # not of readers, which may be starting
        for path in cache_dir.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def open_store(cache_dir: Path, tokenizer: Tokenizer) -> None:
    """Creates an empty store or checks the existing one, and adds the tokenizer.

    Raises:
      UserError: the folder has a store of another format, or cannot be written.
    """
    if (cache_dir / cache_paths.HEADER).exists():
        cache_paths.check_format(cache_dir)
    else:
        shard.write_json(cache_dir / cache_paths.HEADER, {"format": cache_paths.FORMAT})
    path = cache_paths.tokenizer_path(cache_dir, tokenizer.fingerprint)
    if path.exists():
        return
    partial = path.with_name(f".{path.name}.tmp")
    try:
        tokenizer.save(partial)
        partial.rename(path)
    except OSError as error:
        raise UserError(f"--cache_dir={cache_dir}: cannot be written ({error.strerror})") from error


def origin(job: Job, fingerprint: str, task: Task) -> Origin:
    """Hashes the raw files of a task, and returns them with the code and options that would render it now."""
    raw = fingerprints.raw_files(task.files, job.data_dir)
    return Origin(task.name, fingerprint, identity(job.options, task), raw)


def find_rendering(job: Job, fingerprint: str, task: Task) -> Rendering | None:
    """The rendering of a task as its raw files, code and options are now; None if it is not cached."""
    identity_name = Origin(task.name, fingerprint, identity(job.options, task), {}).identity_name
    folder = cache_paths.rendering_path(job.cache_dir, task.name, identity_name).parent
    for path in sorted(folder.glob(f"{identity_name}-*.json")):
        rendering = read_rendering(path)
        content = cache_paths.content_path(job.cache_dir, task.name, rendering["content"])
        if shard.is_whole(content) and fingerprints.unchanged(task.files, job.data_dir, rendering["raw"]):
            return rendering
    return None


def verify(cache_dir: str | os.PathLike) -> Iterator[str]:
    """Yields a message for each fault of a store: damaged or missing files, another tokenizer, mixtures of other sizes,
    ledgers that were changed.

    Raises:
      UserError: there is no store.
    """
    yield from check_store(cache_dir)
    for path in sorted((Path(cache_dir) / "ledgers").rglob("*.jsonl")):
        try:
            read_ledger(path)
        except EmptyLedgerError:
            if about(path).get("sha256") is None:
                yield f"{path}: is empty and has no metadata; cache its suite again"
        except UserError as error:
            yield str(error)
    for path in sorted((Path(cache_dir) / "tokenizers").iterdir()):
        try:
            fingerprint = Tokenizer.load(path).fingerprint
        except UserError as error:
            yield str(error)
            continue
        if not fingerprint.startswith(path.name):
            yield f"{path}: not the tokenizer that made this store; remove the folder and cache again"

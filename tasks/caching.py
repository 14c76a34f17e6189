"""Builds the token store and the prompt ledger of a mixture, or brings them up to date.

A Beam pipeline (`pipeline.py`) runs over (task, split, shard); each element reads raw records, renders them, tokenises
them in batches and writes its shard (`jobs.py`, `shards.py`). Run again, it does only what is missing or out of date:
other raw files (by content), another code version, other options.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from optiml_jax import files
from optiml_jax.data.store import FORMAT
from optiml_jax.data.verify import check_store
from optiml_jax.errors import UserError
from optiml_jax.opt.tokenizer import Tokenizer
from tasks import artifacts, mixtures, pipeline, planning, shards
from tasks.example import Skipped
from tasks.jobs import Job, identity
from tasks.registry import Benchmark, Task, coverage


@dataclass(frozen=True)
class Result:
    """A mixture whose store, manifest and ledger are up to date.

    `written` of its `splits` were made by this run, in `seconds` of the pipeline (without imports and discovery).
    The ledger holds `prompts`; `coverage` is `registry.coverage` of what was found.
    """

    splits: list[tuple[Task, str]]
    written: list[tuple[Task, str]]
    left_out: tuple[Skipped, ...]
    coverage: dict[str, dict[str, list[int]]]
    seconds: float
    prompts: int


def run(
    job: Job,
    tokenizer: Tokenizer,
    beam_flags: Sequence[str] = (),
    max_prompts: int = 0,
    announce: Callable[[planning.Plan], None] | None = None,
) -> Result:
    """Brings the store, the manifest and the ledger of a mixture up to date.

    Args:
      beam_flags: Beam's own command line, such as `--runner=FlinkRunner`.
      max_prompts: prompts of a validation split in the ledger, chosen by id; 0 keeps all.
      announce: told what is planned before it is done; None for no plan.

    Raises:
      UserError: unknown mixture, no data, the store was made with another tokenizer or format, or is being written.
      DataError: files or records that cannot be used. Tasks without fault are cached all the same.
    """
    found = mixtures.mixture(job.mixture).discover(job.data_dir, job.options)
    with exclusive(Path(job.cache_dir)):
        open_store(Path(job.cache_dir), tokenizer)
        return _bring_up_to_date(job, found, tokenizer, beam_flags, max_prompts, announce)


def _bring_up_to_date(
    job: Job,
    found: Benchmark,
    tokenizer: Tokenizer,
    beam_flags: Sequence[str],
    max_prompts: int,
    announce: Callable[[planning.Plan], None] | None,
) -> Result:
    splits = [(task, "train") for task in mixtures.trained(found.tasks)] + mixtures.evaluated(found.tasks)
    pending = [(task, split) for task, split in splits if not is_current(job, tokenizer.fingerprint, task, split)]
    seconds = 0.0
    if pending:
        if announce:
            announce(planning.plan(pending, tokenizer))
        artifacts.remove(job.cache_dir, job.mixture)
        for task, split in pending:
            clear(Path(job.cache_dir), task, split)
        seconds = pipeline.write(job, pending, beam_flags)
    artifacts.write_manifest(job.cache_dir, mixtures.mixture(job.mixture), found)
    prompts = artifacts.write_ledger(job.cache_dir, job.mixture, found, max_prompts)
    return Result(splits, pending, found.left_out, coverage(found), seconds, prompts)


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
    shards.write_json(path, {"format": FORMAT, "tokenizer": ids})  # last: with it the store exists


def is_current(job: Job, fingerprint: str, task: Task, split: str) -> bool:
    """The split is finished and would come out the same."""
    stats = artifacts.read_stats(job.cache_dir, task.name, split)
    if not stats or not identity(job, fingerprint, task, split).items() <= stats.items():
        return False
    if not all((Path(job.cache_dir) / "tasks" / task.name / name).exists() for name in stats["checksums"]):
        return False
    raw = shards.raw_files(task.files, stats["raw"])
    return {name: file["sha256"] for name, file in raw.items()} == {n: f["sha256"] for n, f in stats["raw"].items()}


def clear(cache_dir: Path, task: Task, split: str) -> None:
    """Takes a split out of the store, its stats first, and what a killed run may have left of it."""
    directory = cache_dir / "tasks" / task.name
    (directory / f"{split}.json").unlink(missing_ok=True)
    for path in [*directory.glob(f"{split}[-.]*"), *directory.glob(f".{split}[-.]*.tmp")]:
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

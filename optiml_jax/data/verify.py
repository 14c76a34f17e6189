"""Verifies every byte of a token store against its stored checksums, at about one gigabyte per second."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from optiml_jax.common.errors import DataError, UserError
from optiml_jax.data.checksums import CACHE_AGAIN, crc32
from optiml_jax.data.manifest import Manifest
from optiml_jax.data.store import INDEX_DTYPE, SPLIT, TokenStore

PART = re.compile(r".*-\d{5}-of-\d{5}")  # counts of one shard, stored beside those of the split


def splits(cache_dir: str | os.PathLike) -> list[tuple[str, str]]:
    """Task and split of every complete split, sorted."""
    paths = (Path(cache_dir) / "tasks").glob("*/*.json")
    return sorted((path.parent.name, path.stem) for path in paths if not PART.fullmatch(path.stem))


def check_split(store: TokenStore, task: str, split: str) -> Iterator[str]:
    """Yields a message for each file of the split that does not match its checksum."""
    directory = store.directory / "tasks" / task
    path = directory / f"{split}.json"
    try:
        stats = store.stats(task, split)
        checksums, tokens, examples = stats["checksums"], stats["tokens"], stats["examples"]
        if (stats["task"], stats["split"]) != (task, split):
            raise KeyError("task")
    except (UserError, ValueError, KeyError, TypeError) as error:
        yield str(error) if isinstance(error, UserError) else f"{path}: not the counts of a split; {CACHE_AGAIN}"
        return
    index_bytes = token_bytes = 0
    valid = True
    for name, checksum in checksums.items():
        file = directory / name
        try:
            size, actual = crc32(file)
        except OSError as error:
            valid = False
            yield f"{file}: {'missing' if isinstance(error, FileNotFoundError) else error.strerror}; {CACHE_AGAIN}"
            continue
        index_bytes += size if name.endswith(".index") else 0
        token_bytes += size if name.endswith(".tokens") else 0
        if actual != checksum:
            valid = False
            yield f"{file}: damaged (checksum {actual}, expected {checksum}); {CACHE_AGAIN}"
    if valid and (index_bytes, token_bytes) != (examples * INDEX_DTYPE.itemsize, 2 * tokens):
        yield f"{path}: its {examples:,} examples of {tokens:,} tokens do not match its files; {CACHE_AGAIN}"


def check_manifests(store: TokenStore) -> Iterator[str]:
    """Yields a message for each mixture that cannot be read or whose sizes differ from the store's."""
    for path in sorted((store.directory / "mixtures").glob("*.json")):
        try:
            for task in Manifest.read(path).tasks:
                examples = store.stats(task.name, SPLIT)["examples"]
                if task.examples != examples:
                    difference = f"{task.name} has {examples:,} examples, not {task.examples}"
                    raise DataError(f"{path}: {difference}; cache the mixture again")
        except (UserError, ValueError, KeyError, TypeError) as error:
            yield str(error) if isinstance(error, UserError) else f"{path}: damaged; cache the mixture again"


def check_store(cache_dir: str | os.PathLike) -> Iterator[str]:
    """Yields a message for each fault of the store; none if it is intact.

    Raises:
      UserError: there is no store, or one of another format.
    """
    store = TokenStore(cache_dir)
    for task, split in splits(cache_dir):
        yield from check_split(store, task, split)
    yield from check_manifests(store)

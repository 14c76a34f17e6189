"""Every byte of a token store against the checksums that its writer left: about a second a gigabyte."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from optiml_jax.common.errors import DataError, UserError
from optiml_jax.data.checksums import CACHE_AGAIN, crc32
from optiml_jax.data.manifest import Manifest
from optiml_jax.data.store import INDEX_DTYPE, TokenStore

PART = re.compile(r".*-\d{5}-of-\d{5}")  # counts of one shard, left beside those of the split


def splits(cache_dir: str | os.PathLike) -> list[tuple[str, str]]:
    """Task and split of everything that is finished, in order of name."""
    paths = (Path(cache_dir) / "tasks").glob("*/*.json")
    return sorted((path.parent.name, path.stem) for path in paths if not PART.fullmatch(path.stem))


def check_split(store: TokenStore, task: str, split: str) -> Iterator[str]:
    """A line for each file of the split that is not as it was written."""
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
    sound = True
    for name, checksum in checksums.items():
        file = directory / name
        try:
            size, found = crc32(file)
        except OSError as error:
            sound = False
            yield f"{file}: {'missing' if isinstance(error, FileNotFoundError) else error.strerror}; {CACHE_AGAIN}"
            continue
        index_bytes += size if name.endswith(".index") else 0
        token_bytes += size if name.endswith(".tokens") else 0
        if found != checksum:
            sound = False
            yield f"{file}: not as it was written (checksum {found}, not {checksum}); {CACHE_AGAIN}"
    if sound and (index_bytes, token_bytes) != (examples * INDEX_DTYPE.itemsize, 2 * tokens):
        yield f"{path}: {examples:,} examples of {tokens:,} tokens are not what its files hold; {CACHE_AGAIN}"


def check_manifests(store: TokenStore) -> Iterator[str]:
    """A line for each mixture that cannot be read or whose sizes are not those of the store."""
    for path in sorted((store.directory / "mixtures").glob("*.json")):
        try:
            for task in Manifest.read(path).tasks:
                examples = store.stats(task.name, "train")["examples"]
                if task.examples != examples:
                    have = f"{task.name} has {examples:,} examples, not {task.examples}"
                    raise DataError(f"{path}: {have}; cache the mixture again")
        except (UserError, ValueError, KeyError, TypeError) as error:
            yield str(error) if isinstance(error, UserError) else f"{path}: damaged; cache the mixture again"


def check_store(cache_dir: str | os.PathLike) -> Iterator[str]:
    """A line for each fault of the store; none if it is whole.

    Raises:
      UserError: there is no store, or one of another format.
    """
    store = TokenStore(cache_dir)
    for task, split in splits(cache_dir):
        yield from check_split(store, task, split)
    yield from check_manifests(store)

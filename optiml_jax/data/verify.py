"""Verifies every byte of the contents of a token store against their checksums, at about one gigabyte per second."""

import os
from collections.abc import Iterator
from pathlib import Path

from optiml_jax.common.errors import DataError, UserError
from optiml_jax.data import cache_paths
from optiml_jax.data.checksums import CACHE_AGAIN, crc32
from optiml_jax.data.manifest import Manifest
from optiml_jax.data.store import INDEX_DTYPE, SPLIT, read_counts


def contents(cache_dir: str | os.PathLike) -> list[Path]:
    """Folders of all contents, sorted by task."""
    return sorted(path for path in (Path(cache_dir) / "tasks").glob("*/*") if not path.name.startswith("."))


def check_content(content: Path, split: str = SPLIT) -> Iterator[str]:
    """Yields a message for each file of a content that does not match its checksum."""
    path = content / f"{split}.json"
    try:
        counts = read_counts(content, split)
        checksums, tokens, examples = counts["checksums"], counts["tokens"], counts["examples"]
    except (UserError, KeyError) as error:
        yield str(error) if isinstance(error, UserError) else f"{path}: not the counts of a split; {CACHE_AGAIN}"
        return
    index_bytes = token_bytes = 0
    valid = True
    for name, checksum in checksums.items():
        file = content / name
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


def check_manifests(cache_dir: str | os.PathLike) -> Iterator[str]:
    """Yields a message for each mixture that cannot be read or whose sizes differ from the store's."""
    for path in cache_paths.manifests(cache_dir):
        try:
            for task in Manifest.read(path).tasks:
                examples = read_counts(cache_paths.content_path(cache_dir, task.name, task.content), SPLIT)["examples"]
                if task.examples != examples:
                    difference = f"{task.name} has {examples:,} examples, not {task.examples}"
                    raise DataError(f"{path}: {difference}; cache the mixture again")
        except UserError as error:
            yield str(error)


def check_store(cache_dir: str | os.PathLike) -> Iterator[str]:
    """Yields a message for each fault of the store; none if it is intact.

    Raises:
      UserError: there is no store, or one of another format.
    """
    cache_paths.check_format(cache_dir)
    for content in contents(cache_dir):
        yield from check_content(content)
    yield from check_manifests(cache_dir)

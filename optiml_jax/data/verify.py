"""Verifies every byte of the contents of a token store against their checksums, at about one gigabyte per second."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from optiml_jax.common.errors import DataError, UserError
from optiml_jax.data import cache_paths
from optiml_jax.data.checksums import CACHE_AGAIN, crc32
from optiml_jax.data.manifest import Manifest
from optiml_jax.data.store import CHUNK_SHIFT, INDEX_DTYPE, SOURCE, SPAN_DTYPE, SPLIT, Counts, read_counts, shard_path


def contents(cache_dir: str | os.PathLike) -> list[Path]:
    """Folders of all contents, sorted by task."""
    return sorted(path for path in (Path(cache_dir) / "tasks").glob("*/*") if not path.name.startswith("."))


def check_content(content: Path, split: str = SPLIT) -> Iterator[str]:
    """Yields a message for each file of a content that does not match its checksum."""
    path = content / f"{split}.json"
    try:
        counts = read_counts(content, split)
    except UserError as error:
        yield str(error)
        return
    token_bytes, valid = 0, True
    for name, checksum in counts["checksums"].items():
        file = content / name
        try:
            size, actual = crc32(file)
        except OSError as error:
            valid = False
            yield f"{file}: {'missing' if isinstance(error, FileNotFoundError) else error.strerror}; {CACHE_AGAIN}"
            continue
        token_bytes += size if name.endswith(".tokens") else 0
        if actual != checksum:
            valid = False
            yield f"{file}: damaged (checksum {actual}, expected {checksum}); {CACHE_AGAIN}"
    if not valid:
        return
    counted = _count(content, split, counts) | {"tokens": token_bytes // 2}
    if wrong := [name for name, count in counted.items() if counts[name] != count]:
        yield f"{path}: {wrong[0]} is {counts[wrong[0]]:,}, its files have {counted[wrong[0]]:,}; {CACHE_AGAIN}"


def _count(content: Path, split: str, counts: Counts) -> dict[str, int]:
    """Examples, tokens of labels and the longest label of a split, from its files."""
    examples = label_tokens = longest = 0
    for shard in range(counts["shards"]):
        path = shard_path(content, split, shard, counts["shards"], "index")
        index = np.fromfile(path, INDEX_DTYPE)
        flags = index["label_start"] >> CHUNK_SHIFT
        labels = index["length"].astype(np.int64) - (index["label_start"] & SOURCE) - (flags & 1) - (flags >> 1)
        spans = path.with_suffix(".spans")
        earlier = np.fromfile(spans, SPAN_DTYPE) if spans.name in counts["checksums"] else np.empty(0, SPAN_DTYPE)
        examples += len(index)
        label_tokens += int(labels.sum() + (earlier["end"].astype(np.int64) - earlier["start"]).sum())
        longest = max(longest, int(labels.max(initial=0)))
    return {"examples": examples, "label_tokens": label_tokens, "longest_label": longest}


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

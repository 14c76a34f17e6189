"""The token store: tokenized examples on disk. Written once by `tasks/caching/`, read here by position.

A content, `tasks/<task>/<content>/` of a CACHE_DIR (`cache_paths.py`), is the tokens of one task. Its name is a hash of
its bytes, and nothing in it changes:

    train.json                     counts and checksums
    train-00000-of-00001.tokens    ids as little-endian uint16, examples end to end
    train-00000-of-00001.index     one INDEX_DTYPE record per example
    train-00000-of-00001.ids       one example id per line (UTF-8)
    train-00000-of-00001.inputs    tokens of the task's instructions at the start of each example (u4); if it has any
    train-00000-of-00001.records   first example of each record (u4); only if a record has several, one per template
    train-00000-of-00001.spans     one SPAN_DTYPE record per label before an example's last; only for conversations

Ids are source + target without special tokens: the loader places `</s>`. The index is held in memory, 16 bytes per
example; tokens are read by `pread`, because every touched 64 KB of a memory map counts as resident (2.6 GB after 60
batches of 1,545 tasks). Opening a split checks the sizes of its files and the checksum of its index; a shard of tokens
is verified in the background when it is first read; `verify.py` checks all files.
"""

import bisect
import collections
import itertools
import json
import os
import resource
import threading
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired, Protocol, TypedDict

import msgspec
import numpy as np

from optiml_jax.common import typed_json
from optiml_jax.common.errors import DataError, UserError, nearest
from optiml_jax.common.typed_json import Count
from optiml_jax.data import cache_paths
from optiml_jax.data.checksums import CACHE_AGAIN, Checker
from optiml_jax.data.manifest import Manifest
from optiml_jax.data.readers import registered
from optiml_jax.tokenizer import Tokenizer

SPLIT = "train"  # the split that is tokenized
TOKEN_DTYPE = np.dtype("<u2")
TOKEN_BYTES = TOKEN_DTYPE.itemsize
_NOWAIT = getattr(os, "RWF_NOWAIT", None)  # Linux
MAX_FILES = 8192  # descriptors kept open, if the process may have twice as many
# Offset and length in tokens; the first `label_start` tokens of an example are its source, the others its target. For
# chunked documents the top two bits of `label_start` flag a chunk that continues the previous one or is continued by
# the next (`TokenStore.chunk_flags`).
SOURCE, CHUNK_SHIFT = (1 << 30) - 1, 30  # mask of the source length, and position of the two flags
INDEX_DTYPE = np.dtype([("offset", "<u8"), ("length", "<u4"), ("label_start", "<u4")])
SPAN_DTYPE = np.dtype([("example", "<u4"), ("start", "<u4"), ("end", "<u4")])
INPUT_DTYPE = RECORD_DTYPE = np.dtype("<u4")
KINDS = ("tokens", "index", "ids")
OPTIONAL_KINDS = ("inputs", "records", "spans")


def shard_path(content: str | os.PathLike, split: str, shard: int, shards: int, kind: str) -> Path:
    """Path of one shard's file in the folder of a content; `kind` is one of `KINDS` or `OPTIONAL_KINDS`."""
    return Path(content) / f"{split}-{shard:05d}-of-{shards:05d}.{kind}"


class Counts(TypedDict):
    """The counts of a split, the CRC-32 of each of its files by name, and that of all this (not in older stores)."""

    shards: Annotated[int, msgspec.Meta(ge=1)]
    examples: Count
    tokens: Count
    label_tokens: Count
    longest_label: Count
    longest_label_example: str | None
    checksums: dict[str, Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{8}$")]]
    checksum: NotRequired[str]


def read_counts(content: str | os.PathLike, split: str) -> Counts:
    """Reads the counts and checksums of a split from the folder of a content.

    Raises:
      UserError: the content does not exist.
      DataError: the file is damaged.
    """
    path = Path(content) / f"{split}.json"
    try:
        counts = typed_json.read(path, Counts, CACHE_AGAIN)
    except FileNotFoundError:
        raise UserError(f"{path}: not in this cache; run python -m tools.cache_tasks") from None
    if counts.get("checksum") not in (None, counts_checksum(counts)):
        raise DataError(f"{path}: damaged (its checksum differs); {CACHE_AGAIN}")
    shards, names = counts["shards"], counts["checksums"].keys()
    if shards * len(KINDS) > len(names) or names - _names(split, shards, (*KINDS, *OPTIONAL_KINDS)):
        raise DataError(f"{path}: its checksums are not those of the files of {shards:,} shards; {CACHE_AGAIN}")
    if missing := sorted(_names(split, shards, KINDS) - names):
        raise DataError(f"{path}: has no checksum of {missing[0]}; {CACHE_AGAIN}")
    return counts


def counts_checksum(counts: Mapping[str, Any]) -> str:
    """The CRC-32 of counts, without that of an earlier call."""
    content = {name: value for name, value in counts.items() if name != "checksum"}
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def _names(split: str, shards: int, kinds: Sequence[str]) -> set[str]:
    """The names of the files of a split."""
    return {shard_path("", split, shard, shards, kind).name for shard in range(shards) for kind in kinds}


class EarlierLabels:
    """The labels of conversations before the last one: an answer of every turn is learned, each followed by `</s>`."""

    def __init__(self, spans: np.ndarray) -> None:
        """`spans`: SPAN_DTYPE, sorted by example and position."""
        self._spans = spans

    def of_example(self, i: int) -> np.ndarray:
        """SPAN_DTYPE [labels] of example `i`."""
        return self._spans[slice(*np.searchsorted(self._spans["example"], (i, i + 1)))]

    def fitting(self, examples: np.ndarray, lengths: np.ndarray, room: int) -> np.ndarray:
        """The lengths of examples after those above `room` have lost their first turns, as few as possible.

        An example whose last turn alone is longer keeps its length.
        """
        lengths = lengths.copy()
        for i in np.flatnonzero(lengths > room):
            rest = lengths[i] - self.of_example(int(examples[i]))["end"].astype(np.int64)
            if len(rest := rest[rest <= room]):
                lengths[i] = rest[0]
        return lengths


class Store(Protocol):
    """The methods of `TokenStore` that planning and assembling rows use."""

    tokenizer_fingerprint: str

    def stats(self, task: str, split: str) -> Counts: ...
    def lengths(self, task: str, split: str) -> np.ndarray: ...
    def label_starts(self, task: str, split: str) -> np.ndarray: ...
    def input_starts(self, task: str, split: str) -> np.ndarray | None: ...
    def record_starts(self, task: str, split: str) -> np.ndarray | None: ...
    def chunk_flags(self, task: str, split: str) -> np.ndarray | None: ...
    def earlier_labels(self, task: str, split: str) -> EarlierLabels | None: ...
    def check(self) -> None: ...
    def read_many(self, split: str, examples: Sequence[tuple[str, int]]) -> Sequence[tuple[np.ndarray, int]]: ...


def load_tokenizer(cache_dir: str | os.PathLike, fingerprint: str) -> Tokenizer:
    """Loads a tokenizer of a store.

    Raises:
      DataError: its files are damaged.
    """
    path = cache_paths.tokenizer_path(cache_dir, fingerprint)
    if not path.is_dir():
        raise DataError(f"{path}: missing; cache the mixture again")
    try:
        if (tokenizer := Tokenizer.load(path)).fingerprint == fingerprint:
            return tokenizer
    except UserError as error:
        raise DataError(f"{error}; {CACHE_AGAIN}") from error
    raise DataError(f"{path}: damaged (it is not the tokenizer that was stored); {CACHE_AGAIN}")


class TokenStore:
    """Random access to the examples of a cached mixture; thread-safe. Has `tokenizer_fingerprint` and `vocab_size`.

    While it exists, `tools.cache_tasks --prune` keeps what it reads.

    Args:
      cache_dir: the folder of the store.
      manifest: the mixture; only its tasks can be read.
      max_files: maximum number of open descriptors; None: half of the process's limit, at most `MAX_FILES`.

    Raises:
      UserError: no store, task or split of that name, or one of another format.
      DataError: a file is missing or its length does not match the counts, or an index does not match its checksum.
    """

    def __init__(self, cache_dir: str | os.PathLike, manifest: Manifest, max_files: int | None = None) -> None:
        self._files: collections.OrderedDict[tuple, int] = collections.OrderedDict()  # least recently used first
        self._max_files = max_files or _descriptors()
        self._lock = threading.Lock()  # prevents closing a descriptor while another thread reads from it
        self._splits: dict[tuple[str, str], tuple[np.ndarray, list[int]]] = {}
        self._earlier: dict[tuple[str, str], EarlierLabels | None] = {}
        self._inputs: dict[tuple[str, str], np.ndarray | None] = {}
        self._records: dict[tuple[str, str], np.ndarray | None] = {}
        self._counts: dict[tuple[str, str], Counts] = {}
        self._checker, self._checked = Checker(), set()  # and the shards handed to it
        cache_paths.check_format(cache_dir)
        self.directory, self.manifest = Path(cache_dir), manifest
        self.tokenizer_fingerprint = manifest.specification.tokenizer
        self.vocab_size = manifest.specification.vocab_size
        self._contents = {task.name: task.content for task in manifest.tasks}
        self._reader = registered(cache_dir, manifest)

    @classmethod
    def open(cls, path: str | os.PathLike, max_files: int | None = None) -> "TokenStore":
        """Opens the store of a mixture, given the path of its manifest."""
        return cls(Path(path).parents[2], Manifest.read(path), max_files)

    def __del__(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)

    @property
    def tokenizer_path(self) -> Path:
        """The files of the tokenizer."""
        return cache_paths.tokenizer_path(self.directory, self.tokenizer_fingerprint)

    def load_tokenizer(self) -> Tokenizer:
        """Loads the tokenizer with which the tasks were cached.

        Raises:
          DataError: its files are damaged.
        """
        return load_tokenizer(self.directory, self.tokenizer_fingerprint)

    def content(self, task: str) -> Path:
        """The folder with the tokens of a task."""
        if task not in self._contents:
            raise UserError(f"mixture {self.manifest.name}: no task {task}{nearest(task, self._contents)}")
        return cache_paths.content_path(self.directory, task, self._contents[task])

    def stats(self, task: str, split: str) -> Counts:
        """The counts of a split."""
        if (task, split) not in self._counts:
            self._counts[task, split] = read_counts(self.content(task), split)
        return self._counts[task, split]

    def checksums(self, task: str) -> str:
        """The checksums of a task's index and tokens, in the form in which earlier versions saved them in
        checkpoints."""
        by_file = self.stats(task, "train")["checksums"]
        return " ".join(by_file[name] for name in sorted(by_file) if name.endswith((".index", ".tokens")))

    def lengths(self, task: str, split: str) -> np.ndarray:
        """Tokens per example, source and target: uint32 [examples]."""
        return self.index(task, split)["length"]

    def index(self, task: str, split: str) -> np.ndarray:
        """INDEX_DTYPE [examples]; held in memory (16 bytes per example), so that reading an example is one `pread`."""
        return self._split(task, split)[0]

    def chunk_flags(self, task: str, split: str) -> np.ndarray | None:
        """Which examples are chunks of longer documents: uint8 [examples], or None if none is.

        Bit 1: continuation chunk; its first token repeats the previous chunk's last and is input only. Bit 0: continued
        by the next chunk; its last token is a target only.
        """
        flags = (self.index(task, split)["label_start"] >> CHUNK_SHIFT).astype(np.uint8)
        return flags if flags.any() else None

    def earlier_labels(self, task: str, split: str) -> EarlierLabels | None:
        """The labels before the last one of each example; None if every example has a single label."""
        if (task, split) not in self._earlier:
            parts = self._optional(task, split, "spans", SPAN_DTYPE)
            for part, start in zip(parts, self._split(task, split)[1]):
                part["example"] += start
            spans = np.concatenate(parts)
            self._earlier[task, split] = EarlierLabels(spans) if len(spans) else None
        return self._earlier[task, split]

    def label_starts(self, task: str, split: str) -> np.ndarray:
        """Length of the source of each example, in tokens: uint32 [examples]."""
        return self.index(task, split)["label_start"] & np.uint32(SOURCE)

    def input_starts(self, task: str, split: str) -> np.ndarray | None:
        """Where the own part of each example starts, in tokens: after the instructions that all examples of the task
        share and the line break that ends them. Demonstrations are inserted there. uint32 [examples], or None if the
        task has no such instructions."""
        if (task, split) not in self._inputs:
            counts = np.diff(self._split(task, split)[1])
            parts = self._optional(task, split, "inputs", INPUT_DTYPE)
            filled = [part if len(part) else np.zeros(n, INPUT_DTYPE) for part, n in zip(parts, counts)]
            self._inputs[task, split] = np.concatenate(filled) if any(map(len, parts)) else None
        return self._inputs[task, split]

    def record_starts(self, task: str, split: str) -> np.ndarray | None:
        """The first example of each record, and the number of examples: int64 [records + 1]. The examples of a record,
        one per template, are consecutive. None if every record has one example."""
        if (task, split) not in self._records:
            starts = self._split(task, split)[1]
            parts = self._optional(task, split, "records", RECORD_DTYPE)
            filled = [
                start + (part.astype(np.int64) if len(part) else np.arange(stop - start))
                for part, start, stop in zip(parts, starts, starts[1:])
            ]
            some = any(map(len, parts))
            self._records[task, split] = np.concatenate([*filled, starts[-1:]]) if some else None
        return self._records[task, split]

    def _optional(self, task: str, split: str, kind: str, dtype: np.dtype) -> list[np.ndarray]:
        """An optional file of each shard, verified; empty where it does not exist."""
        counts, arrays = self.stats(task, split), []
        for path in self._paths(task, split, kind):
            exists = path.name in counts["checksums"]
            arrays.append(np.frombuffer(_verified(path, counts) if exists else b"", dtype).copy())
        return arrays

    def shards(self, task: str, split: str) -> list[tuple[Path, slice]]:
        """The files of tokens, and the examples that lie end to end in each: for sequential reading."""
        starts = self._split(task, split)[1]
        return list(zip(self._paths(task, split, "tokens"), map(slice, starts, starts[1:])))

    def read(self, task: str, split: str, i: int) -> tuple[np.ndarray, int]:
        """Reads example `i`: its ids, uint16 [length], and the length of its source."""
        return self.read_many(split, [(task, i)])[0]

    def parts(self, task: str, split: str, i: int) -> list[tuple[str, np.ndarray]]:
        """Reads example `i` as ("source", ids), ("target", ids); these alternate in a conversation."""
        ids, label_start = self.read(task, split, i)
        earlier = self.earlier_labels(task, split)
        spans = [] if earlier is None else [(start, end) for _, start, end in earlier.of_example(i).tolist()]
        parts, position = [], 0
        for start, end in [*spans, (label_start, len(ids))]:
            parts += [("source", ids[position:start]), ("target", ids[start:end])]
            position = end
        return parts

    def check(self) -> None:
        """Waits until every shard that was read is verified: one second per gigabyte, once.

        Raises:
          DataError: names a shard that does not match its checksum. Later reads raise it too.
        """
        self._checker.wait()

    def read_many(self, split: str, examples: Sequence[tuple[str, int]]) -> list[tuple[np.ndarray, int]]:
        """Reads each (task, i) as `read`. Requests everything that is not in the page cache before waiting for any of
        it: disks serve many requests at once, and sequential reads are four times as slow.
        """
        self._checker.raise_fault()
        spans = []  # shard and byte offset of each example, its start and end in the buffer, and its source length
        end = 0
        for task, i in examples:
            index, starts = self._split(task, split)
            if not 0 <= i < len(index):
                raise IndexError(f"{task} {split}: example {i} of {len(index)}")
            offset, length, label_start = index[i].item()
            shard = (task, split, bisect.bisect_right(starts, i) - 1, len(starts) - 1)
            spans.append((shard, TOKEN_BYTES * offset, end, end + length, label_start & SOURCE))
            end += length
        ids = np.empty(end, TOKEN_DTYPE)
        bytes_ = ids.view(np.uint8).data
        with self._lock:
            pending = spans
            if _NOWAIT is not None and len(spans) > 1:
                pending = [span for span in spans if not self._read_now(*span[:2], _part(bytes_, *span[2:4]))]
            for shard, offset, start, stop, _ in pending:
                self._read(shard, offset, _part(bytes_, start, stop))
        return [(ids[start:stop], label_start) for *_, start, stop, label_start in spans]

    def example_id(self, task: str, split: str, i: int) -> str:
        """The id of example `i`, for messages and tables; reads the whole list of ids at each call."""
        counts = self.stats(task, split)
        return b"".join(_verified(path, counts) for path in self._paths(task, split, "ids")).decode().split("\n")[i]

    def _paths(self, task: str, split: str, kind: str) -> list[Path]:
        shards = self.stats(task, split)["shards"]
        return [shard_path(self.content(task), split, shard, shards, kind) for shard in range(shards)]

    def _split(self, task: str, split: str) -> tuple[np.ndarray, list[int]]:
        """Index [examples] and the first example of each shard [shards + 1]."""
        if (task, split) not in self._splits:
            stats = self.stats(task, split)
            parts = [_index(path, stats) for path in self._paths(task, split, "index")]
            starts = [0, *itertools.accumulate(map(len, parts))]
            if starts[-1] != stats["examples"]:
                path = self._paths(task, split, "index")[0]
                raise DataError(f"{path}: {starts[-1]} of {stats['examples']} examples; {CACHE_AGAIN}")
            self._splits[task, split] = np.concatenate(parts), starts
        return self._splits[task, split]

    def _descriptor(self, shard: tuple) -> int:
        """Opens the shard's tokens, or returns the open descriptor; call under the lock."""
        descriptor = self._files.pop(shard, None)
        if descriptor is None:
            if len(self._files) >= self._max_files:
                os.close(self._files.popitem(last=False)[1])
            path = shard_path(self.content(shard[0]), *shard[1:], "tokens")
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if shard not in self._checked:
                self._checked.add(shard)
                self._checker.add(path, self.stats(*shard[:2])["checksums"][path.name])
        self._files[shard] = descriptor  # moved to the end: the most recently used
        return descriptor

    def _read_now(self, shard: tuple, offset: int, part: memoryview) -> bool:
        """Reads from the page cache. Returns False if the bytes are not there, after requesting them."""
        descriptor = self._descriptor(shard)
        try:
            if os.preadv(descriptor, [part], offset, _NOWAIT) == len(part):
                return True
        except OSError:  # it would block, or this file system does not support the flag
            pass
        os.posix_fadvise(descriptor, offset, len(part), os.POSIX_FADV_WILLNEED)
        return False

    def _read(self, shard: tuple, offset: int, part: memoryview) -> None:
        if os.preadv(self._descriptor(shard), [part], offset) != len(part):
            raise DataError(f"{shard_path(self.content(shard[0]), *shard[1:], 'tokens')}: truncated; {CACHE_AGAIN}")


def _part(bytes_: memoryview, start: int, stop: int) -> memoryview:
    return bytes_[TOKEN_BYTES * start : TOKEN_BYTES * stop]


def _descriptors() -> int:
    """Half of the process's limit, after raising it: 1,545 tasks read at half speed with 512 descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2 * MAX_FILES:
        soft = 2 * MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, 2 * MAX_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(MAX_FILES, soft // 2)


def _index(path: Path, counts: Counts) -> np.ndarray:
    """Reads the index of one shard, INDEX_DTYPE [examples]; checks its checksum and the size of the tokens."""
    tokens = path.with_suffix(".tokens")
    index = np.frombuffer(_verified(path, counts), INDEX_DTYPE)
    if not tokens.exists():
        raise DataError(f"{tokens}: missing; {CACHE_AGAIN}")
    expected, actual = 2 * int(index["length"].sum(dtype=np.uint64)), tokens.stat().st_size
    if expected != actual:
        raise DataError(f"{tokens}: {actual:,} bytes, but the index says {expected:,}; {CACHE_AGAIN}")
    return index


def _verified(path: Path, counts: Counts) -> bytes:
    """Reads a file and checks its checksum."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: missing; {CACHE_AGAIN}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {CACHE_AGAIN}") from None
    if counts["checksums"][path.name] != f"{zlib.crc32(content):08x}":
        raise DataError(f"{path}: damaged (its checksum differs); {CACHE_AGAIN}")
    return content
